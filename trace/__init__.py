"""TRACE: vision-language models that reason in words before they point.

Installed as `trace_vlm`. In the root of the repository the same folder shadows the standard library's module `trace`,
whose names are therefore passed through. Importing is instant: names that need torch are loaded on first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Threads that wait for each other sleep instead of turning: on two busy cores nano's 46 tokens take 0.4 s instead of 4.
# OpenMP reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from .core.points import Box as Box
    from .core.points import Point as Point
    from .core.reasoning import Response as Response
    from .inference.predictor import Prediction as Prediction
    from .inference.predictor import Predictor as Predictor

__version__ = "0.1.0"

_HOMES = {
    "Box": ".core.points", "Point": ".core.points", "Response": ".core.reasoning",
    "Prediction": ".inference.predictor", "Predictor": ".inference.predictor",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if home := _HOMES.get(name):
        return getattr(importlib.import_module(home, __name__), name)
    if __name__ == "trace" and not name.startswith("__"):
        standard = _standard_library_trace()
        if hasattr(standard, name):
            return getattr(standard, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _standard_library_trace() -> Any:
    import importlib.util
    import sys
    import sysconfig

    alias = "_standard_library_trace"
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(alias, f"{sysconfig.get_path('stdlib')}/trace.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[alias] = module
    return sys.modules[alias]
