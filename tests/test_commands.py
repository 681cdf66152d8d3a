"""Every command tells its usage at once: without torch and whatever else is slow to import, however it was started."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trace_vlm.cli import COMMANDS
from trace_vlm.cli import main as trace_vlm_main
from trace_vlm.utils.command import Parser

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch", "transformers", "tokenizers", "matplotlib", "mujoco", "datasets", "accelerate", "peft", "scipy", "pandas",
    "pyarrow", "gradio", "openai",
}  # fmt: skip


def is_command(path: Path) -> bool:
    """Whether a module ends in `if __name__ == "__main__"`."""
    body = ast.parse(path.read_text()).body
    return any(isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in body)


def commands() -> dict[str, list[str]]:
    """Name -> the words after `python`: every command of the package, each script beside it, and `trace-vlm`."""
    modules = [path for path in sorted((ROOT / "trace").rglob("*.py")) if is_command(path)]
    names = [".".join(path.relative_to(ROOT / "trace").with_suffix("").parts) for path in modules]
    found = {name: ["-m", f"trace_vlm.{name}"] for name in names if name != "__main__"}
    found["trace_vlm"] = ["-m", "trace_vlm"]
    for path in sorted((ROOT / "visualization").glob("*.py")):
        found[path.name] = [str(path)]
    return found


ALL = commands()


def asked_for_help(words: list[str], *flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, *words, "--help"],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_commands_of_the_published_page_are_among_them() -> None:
    published = {"eval.model_vqa", "eval.summarize_vqa", "train.train", "visualize_results.py", "attention_map.py"}
    assert published <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_help_is_given_without_loading_what_is_heavy(name: str, tmp_path: Path) -> None:
    done = asked_for_help(ALL[name], "-X", "importtime", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("usage:")
    imported = set(re.findall(r"^import time:.*\|\s*(\S+)$", done.stderr, flags=re.MULTILINE))
    assert "argparse" in imported or name == "trace_vlm", "the listing of imports was not understood"
    assert not HEAVY & imported


@pytest.mark.parametrize("name", COMMANDS)
def test_every_sub_command_leads_to_a_main(name: str) -> None:
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(f"trace_vlm{module}"), function))


def test_a_sub_command_gets_its_arguments_and_its_name(tmp_path: Path) -> None:
    done = asked_for_help(["-m", "trace_vlm", "summarize"], cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: trace-vlm summarize ")


def test_a_mistyped_sub_command_is_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert trace_vlm_main(["sumarize"]) == 2
    assert capsys.readouterr().err == "error: trace-vlm has no command 'sumarize': did you mean summarize?\n"


@pytest.mark.parametrize("number", ["-1e9", "-1E-3", "-.5", "-2.", "-1.5e+2", "-3"])
def test_a_negative_number_needs_no_equals_sign(number: str) -> None:
    parser = Parser()
    parser.add_argument("--bias", type=float)
    assert parser.parse_args(["--bias", number]).bias == float(number)


def test_without_a_sub_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert trace_vlm_main([]) == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", told, flags=re.MULTILINE) for name in COMMANDS)


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert trace_vlm_main(["--version"]) == 0
    assert capsys.readouterr().out == f"trace-vlm {version('trace-vlm')}\n"
