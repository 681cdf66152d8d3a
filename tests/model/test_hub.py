"""Names on the hub, through the hub's own client and a local server that answers as the hub does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hub_server import COMMIT, hub
from safetensors.torch import load_file

NAMES = ("base", "lora", "projector_only", "clip")
LORA = ("lab/lora", "--model-base", "lab/base", "--vision-tower", "lab/clip")


def command(address: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    command = [sys.executable, "-P", "-m", "trace_vlm", *words]
    return subprocess.run(command, env=environment, cwd=home.parent, capture_output=True, text=True, timeout=120)


def test_an_adapter_its_base_and_the_tower_come_from_the_hub(recorded, converted, tmp_path):
    served = {f"lab/{name}": recorded.folder / name for name in NAMES}
    with hub("lab/full", recorded.folder / "full", "models", served) as (address, log):
        done = command(address, tmp_path / "home", "convert", LORA[0], "made", *LORA[1:])
        assert done.returncode == 0, done.stderr
        assert any(line.startswith(f"GET /lab/lora/resolve/{COMMIT}/non_lora_trainables.bin") for line in log)
        absent = command(address, tmp_path / "home", "convert", "lab/absent", "other")
    made, here = load_file(tmp_path / "made" / "model.safetensors"), load_file(converted["lora"] / "model.safetensors")
    assert all(one.equal(here[name]) for name, one in made.items()) and set(made) == set(here)
    card = (tmp_path / "made" / "README.md").read_text()
    assert "base_model: lab/base" in card and "vision tower: lab/clip" in card and COMMIT not in card
    assert absent.returncode == 2 and "the model lab/absent is not a folder" in absent.stderr
    # what was fetched once is enough without the hub
    away = command(address, tmp_path / "home", "checkpoint", "inspect", *LORA)
    assert away.returncode == 0 and "missing         nothing" in away.stdout, away.stderr
    gone = command(address, tmp_path / "home", "checkpoint", "inspect", "lab/full")
    assert (
        gone.returncode == 2 and "cannot be downloaded from the hub" in gone.stderr and "Traceback" not in gone.stderr
    )


def test_a_connection_that_ends_inside_a_file_is_one_sentence(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "config.json").write_text("{}")
    (tmp_path / "served" / "model.safetensors").write_bytes(b"x" * 4096)
    with hub("lab/cut", tmp_path / "served", "models", cut="model.safetensors") as (address, _):
        done = command(address, tmp_path / "home", "checkpoint", "inspect", "lab/cut")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "the model lab/cut is not a folder" in done.stderr
