"""Every command shows its usage, as it was typed, at once: nothing slow is imported, however it was started."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from trace_vlm.cli import COMMANDS
from trace_vlm.cli import main as trace_vlm_main
from trace_vlm.utils.command import Incomplete, InputError, Parser, run

ROOT = Path(__file__).resolve().parents[2]
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
    found = {name: ["-m", f"trace_vlm.{name}".removesuffix(".__main__")] for name in names}
    return found | {path.name: [str(path)] for path in sorted((ROOT / "visualization").glob("*.py"))}


ALL = commands()


def ask_for_help(words: list[str], *flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, *words, "--help"],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "250"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_commands_of_the_published_page_are_among_them() -> None:
    published = {"eval.model_vqa", "eval.summarize_vqa", "train.train", "visualize_results.py", "attention_map.py"}
    assert published <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_help_loads_nothing_heavy_and_shows_the_command_as_typed(name: str, tmp_path: Path) -> None:
    done = ask_for_help(ALL[name], "-X", "importtime", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    typed = " ".join(["python", *ALL[name]]) if ALL[name][0] == "-m" else ALL[name][0]
    assert done.stdout.startswith("usage: trace-vlm COMMAND" if name in ("__main__", "cli") else f"usage: {typed} ")
    assert "(default: None)" not in done.stdout
    imported = set(re.findall(r"^import time:.*\|\s*(\S+)$", done.stderr, flags=re.MULTILINE))
    assert "argparse" in imported or name in ("__main__", "cli"), "the listing of imports was not understood"
    assert not HEAVY & imported


@pytest.mark.parametrize("name", COMMANDS)
def test_every_sub_command_leads_to_a_main(name: str) -> None:
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(f"trace_vlm{module}"), function))


def test_a_sub_command_gets_its_arguments_and_its_name(tmp_path: Path) -> None:
    done = ask_for_help(["-m", "trace_vlm", "summarize"], cwd=tmp_path)
    assert done.stdout.startswith("usage: python -m trace_vlm summarize ")
    console_script = str(Path(sys.executable).with_name("trace-vlm"))
    done = subprocess.run(
        [console_script, "checkpoint", "merge", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: trace-vlm checkpoint merge ")


def test_the_overview_the_version_and_a_mistyped_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert trace_vlm_main([]) == 0
    overview = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", overview, flags=re.MULTILINE) for name in COMMANDS)
    assert trace_vlm_main(["--version"]) == 0
    assert capsys.readouterr().out == f"trace-vlm {version('trace-vlm')}\n"
    assert trace_vlm_main(["sumarize"]) == 2
    message = capsys.readouterr().err
    assert "'sumarize'" in message and "summarize?" in message and message.count("\n") == 1


@pytest.mark.parametrize("number", ["-1e9", "-1E-3", "-.5", "-2.", "-1.5e+2", "-3"])
def test_a_negative_number_needs_no_equals_sign(number: str) -> None:
    parser = Parser()
    parser.add_argument("--bias", type=float)
    assert parser.parse_args(["--bias", number]).bias == float(number)


@pytest.mark.parametrize("words", [["--batch-size", "a_b"], ["--batch_size=a_b"]])
def test_flags_in_both_spellings(words: list[str]) -> None:
    parser = Parser()
    parser.add_argument("--batch-size")
    assert parser.parse_args(words).batch_size == "a_b"
    with pytest.raises(SystemExit):
        parser.parse_args(["--batch", "a"])  # a prefix is not enough


def test_help_shows_defaults_that_say_something() -> None:
    parser = Parser()
    parser.add_argument("--a", help="one")
    parser.add_argument("--b", help="two", action="store_true")
    parser.add_argument("--c", help="three", default=0)
    parser.add_argument("--d", help="four (default: many)", default=4)
    lines = [line.split(maxsplit=1) for line in parser.format_help().splitlines() if line.startswith("  --")]
    assert [line[-1].split("  ")[-1].strip() for line in lines] == [
        "one", "two", "three (default: 0)", "four (default: many)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error, code", [(InputError("x"), 2), (Incomplete("x"), 1), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_exit_codes(error: BaseException | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> None:
        if error is not None:
            raise error

    assert run(main) == code
    assert capsys.readouterr().err.count("\n") == (error is not None)
