"""Fixtures of the training tests: a cache of their own, a model a tenth of nano's size."""

import copy
import os

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported, in the server that runs are forked from

import pytest
from train_together import no_curves

from trace_vlm.model.checkpoint import save


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch):
    monkeypatch.setattr("trace_vlm.drawing.figures.draw_training_curves", no_curves)


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint, tmp_path_factory):
    checkpoint, folder = copy.deepcopy(tiny_checkpoint), tmp_path_factory.mktemp("models") / "tiny"
    checkpoint.model.get_output_embeddings().weight.data.div_(20)  # as it was initialised
    save(checkpoint, folder)
    return folder
