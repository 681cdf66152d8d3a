"""Names on the hub, through the hub's own client and a local server that answers as the hub does."""

from __future__ import annotations

from hub_server import COMMIT, hub, run_module
from safetensors.torch import load_file

NAMES = ("full", "base", "lora", "projector_only", "clip")
LORA = ("lab/lora", "--model-base", "lab/base", "--vision-tower", "lab/clip")


def test_an_adapter_its_base_and_the_tower_come_from_the_hub(recorded, converted, tmp_path):
    with hub({f"lab/{name}": recorded.folder / name for name in NAMES}, "models") as (address, log):
        done = run_module(address, tmp_path / "home", "trace_vlm", "convert", LORA[0], "made", *LORA[1:])
        assert done.returncode == 0, done.stderr
        assert any(line.startswith(f"GET /lab/lora/resolve/{COMMIT}/non_lora_trainables.bin") for line in log)
        absent = run_module(address, tmp_path / "home", "trace_vlm", "convert", "lab/absent", "other")
    made, here = load_file(tmp_path / "made" / "model.safetensors"), load_file(converted["lora"] / "model.safetensors")
    assert all(one.equal(here[name]) for name, one in made.items()) and set(made) == set(here)
    card = (tmp_path / "made" / "README.md").read_text()
    assert "base_model: lab/base" in card and "vision tower: lab/clip" in card and COMMIT not in card
    assert absent.returncode == 2 and "lab/absent" in absent.stderr
    # what was fetched once is enough without the hub
    away = run_module(address, tmp_path / "home", "trace_vlm", "checkpoint", "inspect", *LORA)
    assert away.returncode == 0, away.stderr
    gone = run_module(address, tmp_path / "home", "trace_vlm", "checkpoint", "inspect", "lab/full")
    assert gone.returncode == 2 and "lab/full" in gone.stderr and "Traceback" not in gone.stderr


def test_a_connection_that_ends_inside_a_file_is_one_sentence(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "config.json").write_text("{}")
    (tmp_path / "served" / "model.safetensors").write_bytes(b"x" * 4096)
    with hub({"lab/cut": tmp_path / "served"}, "models", cut="model.safetensors") as (address, _):
        done = run_module(address, tmp_path / "home", "trace_vlm", "checkpoint", "inspect", "lab/cut")
    assert done.returncode == 2 and "lab/cut" in done.stderr and "Traceback" not in done.stderr, done.stderr
