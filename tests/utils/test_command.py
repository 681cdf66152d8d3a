"""Every command shows its usage, as it was typed, at once; flags have one name everywhere; exit codes."""

import ast
import importlib
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from trace_vlm.cli import COMMANDS
from trace_vlm.cli import main as trace_vlm_main
from trace_vlm.train.plan import main as plan_main
from trace_vlm.utils.command import PUBLISHED_FLAGS, Incomplete, InputError, Parser, run

ROOT = Path(__file__).resolve().parents[2]
HEAVY = set("torch transformers tokenizers matplotlib mujoco datasets accelerate peft scipy pandas pyarrow".split())
HEAVY |= {"gradio", "openai"}


def commands():
    """Name -> the words after `python`: every command of the package, each script beside it, and `trace-vlm`."""
    paths = [path for path in (ROOT / "trace").rglob("*.py") if '\nif __name__ == "__main__"' in path.read_text()]
    names = sorted(".".join(path.relative_to(ROOT / "trace").with_suffix("").parts) for path in paths)
    modules = {name: ["-m", f"trace_vlm.{name}".removesuffix(".__main__")] for name in names}
    return modules | {path.name: [str(path)] for path in sorted((ROOT / "visualization").glob("*.py"))}


ALL = commands()


@pytest.mark.parametrize("name", ALL)
def test_help_loads_nothing_heavy_and_shows_the_command_as_typed(name, tmp_path):
    words = [sys.executable, "-X", "importtime", *ALL[name], "--help"]
    environment = {**os.environ, "COLUMNS": "250"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    typed = " ".join(["python", *ALL[name]]) if ALL[name][0] == "-m" else ALL[name][0]
    assert done.stdout.startswith("usage: trace-vlm COMMAND" if name in ("__main__", "cli") else f"usage: {typed} ")
    assert "(default: None)" not in done.stdout
    assert name in ("__main__", "cli") or re.search(r"^examples:\n {4}\S", done.stdout, flags=re.MULTILINE), done.stdout
    imported = set(re.findall(r"^import time:.*\|\s*(\S+)$", done.stderr, flags=re.MULTILINE))
    assert imported and not HEAVY & imported


@pytest.mark.parametrize("name", COMMANDS)
def test_every_sub_command_leads_to_a_main(name):
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(f"trace_vlm{module}"), function))


@pytest.mark.parametrize("typed", ["python -m trace_vlm summarize", "trace-vlm checkpoint merge"])
def test_a_sub_command_gets_its_arguments_and_its_name(typed, tmp_path):
    program, *words = typed.split()
    command = [str(Path(sys.executable).with_name(program)), *words, "--help"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.startswith(f"usage: {typed} ")


def test_the_overview_the_version_and_a_mistyped_command(capsys):
    assert trace_vlm_main([]) == 0
    overview = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", overview, flags=re.MULTILINE) for name in COMMANDS)
    assert trace_vlm_main(["--version"]) == 0
    assert capsys.readouterr().out == f"trace-vlm {metadata.version('trace-vlm')}\n"
    assert trace_vlm_main(["sumarize"]) == 2
    message = capsys.readouterr().err
    assert "'sumarize'" in message and "summarize?" in message and message.count("\n") == 1


@pytest.mark.parametrize("number", ["-1e9", "-1E-3", "-.5", "-2.", "-1.5e+2", "-3"])
def test_a_negative_number_needs_no_equals_sign(number):
    parser = Parser()
    parser.add_argument("--bias", type=float)
    assert parser.parse_args(["--bias", number]).bias == float(number)


@pytest.mark.parametrize("error, code", [(InputError, 2), (Incomplete, 1), (KeyboardInterrupt, 130), (None, 0)])
def test_exit_codes(error, code, capsys):
    def main(argv):
        if error is not None:
            raise error("x")

    assert run(main) == code
    assert capsys.readouterr().err.count("\n") == (error is not None)


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    code = """if True:
        import os, signal, sys
        from tqdm import tqdm
        from trace_vlm.utils.command import run
        from trace_vlm.utils.files import replacing

        def main(argv):
            with replacing("out.json") as temporary:
                temporary.write_text("half")
                for _ in tqdm(range(2)):
                    os.kill(os.getpid(), signal.SIGTERM)
        sys.exit(run(main))"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143 and os.listdir(tmp_path) == []
    lines = done.stderr.replace("\r", "\n").splitlines()
    assert "stopped by SIGTERM; the same command continues where it stopped" in lines  # on a line of its own


@pytest.mark.parametrize(("spelling", "flag"), [*PUBLISHED_FLAGS.items(), ("--batch-size", "--batch-size")])
def test_published_spellings_are_accepted(spelling, flag):
    parser = Parser()
    parser.add_argument(flag)
    underscored = "--" + spelling[2:].replace("-", "_")
    for words in ([spelling, "a_b"], [underscored, "a_b"], [f"{underscored}=a_b"], [flag, "a_b"]):
        assert [*vars(parser.parse_args(words)).items()] == [(flag[2:].replace("-", "_"), "a_b")]
    with pytest.raises(SystemExit):
        parser.parse_args([flag[:-2], "a"])  # a prefix is not enough


def test_no_command_defines_a_published_spelling_and_reasoning_is_a_switch():
    """In the calls of add_argument and its abbreviation `add` in every file."""
    defined, actions, folders = set(), [], ("trace", "visualization", "scripts", "benchmarks")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in ("add", "add_argument"):
                words = {str(word.value) for word in call.args if isinstance(word, ast.Constant)}
                defined |= words
                if "--reasoning" in words:
                    actions += [ast.unparse(word.value) for word in call.keywords if word.arg == "action"] or ["store"]
    assert not defined & set(PUBLISHED_FLAGS) and set(PUBLISHED_FLAGS.values()) <= defined
    assert len(actions) > 1 and set(actions) <= {"argparse.BooleanOptionalAction", "'store_true'"}


def test_help_shows_defaults_that_say_something():
    parser = Parser()
    parser.add_argument("--a", help="one")
    parser.add_argument("--b", help="two", action="store_true")
    parser.add_argument("--c", help="three", default=0)
    parser.add_argument("--d", help="four (default: many)", default=4)
    lines = [line.split("  ")[-1].strip() for line in parser.format_help().splitlines() if line.startswith("  --")]
    assert lines == ["one", "two", "three (default: 0)", "four (default: many)"]


def test_examples_are_the_modules_own_under_the_name_that_was_typed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trace-vlm plan"])
    with pytest.raises(SystemExit):
        plan_main(["--help"])
    shown = capsys.readouterr().out
    assert "examples:\n    " in shown and "python -m trace.train.plan" not in shown


@pytest.mark.parametrize(("line", "expected"), [
    ("trace-vlm pre", {"predict"}), ("trace-vlm plan --gpu", {"--gpus", "--gpu-memory"}),
    ("trace-vlm reason --reasoner ", {"rules", "file", "gemini", "openai"}),
])  # fmt: skip
def test_the_shell_completes_commands_flags_and_choices(line, expected, tmp_path):
    words = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"),
             "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}  # fmt: skip
    program = str(Path(sys.executable).with_name("trace-vlm"))
    subprocess.run([program], env={**os.environ, **words}, check=True, timeout=120)
    assert {word.strip() for word in (tmp_path / "words").read_text().split("\n")} >= expected


def test_doctor_names_what_is_missing_and_what_mends_it(monkeypatch, capsys):
    assert trace_vlm_main(["doctor"]) == 0
    healthy = capsys.readouterr().out
    assert "torch" in healthy and "cores" in healthy and "GB free" in healthy and "missing " not in healthy
    real = metadata.version

    def version(name):
        if name == "pillow":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "numpy" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert trace_vlm_main(["doctor"]) == 1
    broken = capsys.readouterr().out
    assert "missing pillow is not installed\n        -> pip install 'pillow>=" in broken
    assert "missing numpy is 1.0\n        -> pip install 'numpy>=" in broken
