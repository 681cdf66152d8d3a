"""A step of training on the recorded samples: the loss that is logged is the one LLaVA's own code computed."""

import json

import pytest

from trace_vlm.train.config import TrainConfig
from trace_vlm.train.train import train
from trace_vlm.utils.config import build_config


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_the_logged_loss_is_the_originals(recorded, tmp_path, monkeypatch, packing):
    """Several turns and a sample without an image included; the rows that round the vocabulary up never enter."""
    monkeypatch.setenv("TRACE_CACHE", str(tmp_path / "cache"))
    settings = {
        "model": str(recorded.folder / "full"), "data": [str(recorded.folder / "train_samples.json")],
        "image_folder": str(recorded.folder / "images"), "output_dir": str(tmp_path / "run"), "max_steps": 1,
        "trainable": ["projector", "llm"], "global_batch_size": 4, "micro_batch_size": 4, "packing": packing,
        "precision": "fp32", "gradient_checkpointing": False, "dataloader_workers": 0, "logging_steps": 1, "report_to": [],
    }  # fmt: skip
    folder = train(build_config(TrainConfig, settings, "test"))
    (first,) = [one for one in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "token_loss" in one]
    assert first["token_loss"] == pytest.approx(float(recorded.arrays["full__train_loss"][-1]), abs=1e-5)
