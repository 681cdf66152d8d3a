"""Models behind a server in this process."""

import pytest

for package in ("fastapi", "httpx2", "multipart", "prometheus_client", "uvicorn"):
    pytest.importorskip(package, reason="pip install 'trace-vlm[serve]'")


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint):
    from trace_vlm.inference.predictor import Predictor

    return Predictor(tiny_checkpoint)


@pytest.fixture(scope="session")
def client(tiny):
    from http_server import serving

    with serving(tiny) as client:
        yield client


@pytest.fixture(scope="session")
def trained():
    """The bundled model, which answers with points."""
    from trace_vlm.inference.predictor import Predictor

    return Predictor.load("nano")
