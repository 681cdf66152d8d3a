"""What every command shares: flags in both spellings, usage as typed, errors in one line, exit codes.

A mistake of the user (a missing file, an unknown key, broken JSON) is raised as `InputError` anywhere below, and `run`
turns it into one line on standard error and exit code 2. Any other exception is a defect and keeps its traceback.
This module imports nothing heavy, so that `--help` of every command is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Input of the user is wrong. The message says what is wrong, where, and what to do."""


class Incomplete(RuntimeError):
    """A part of the work failed and everything else is done. The message names the part and what to do."""


def install_hint(extra: str) -> str:
    """How to install an extra; pip alone does not keep to the tested versions."""
    return f"bash environment_setup.sh --extras {extra} in a clone, or pip install 'trace-vlm[{extra}]'"


def package_versions(*names: str) -> dict[str, str]:
    """Return Python's version and those of the named packages that are installed, as runs record them."""
    from importlib.metadata import PackageNotFoundError, version  # 0.1 s, which no --help has to wait for

    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def program_name() -> str:
    """The command as it was typed: `trace-vlm`, `python -m trace.eval.model_vqa`, `visualization/attention_map.py`."""
    if sys.argv[0].startswith(("trace-vlm ", "python -m ")):  # set by `trace-vlm COMMAND`
        return sys.argv[0]
    *before, program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1] or [sys.argv[0]]
    if before[-1:] == ["-m"]:
        return f"python -m {program}"
    return program if program.endswith(".py") else Path(sys.argv[0]).name


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help, unless there is none or the help states it; examples keep their lines."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


EXAMPLES = "examples:\n"
# Spellings of the published commands -> the name that every command of this project uses.
PUBLISHED_FLAGS = {
    "--model-path": "--model", "--base": "--model-base", "--data-dir": "--data", "--dataset-dir": "--data",
    "--image-folder": "--images", "--image-root": "--images", "--question-file": "--questions",
    "--answer": "--answers", "--answer-file": "--answers", "--answer-files": "--answers",
    "--answers-file": "--answers", "--output": "--out", "--output-dir": "--out",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts `-` and `_` in flags alike, and the published spellings of the common ones.

    `examples` is the docstring of the command's module: its indented lines are shown at the end of the help.
    """

    def __init__(self, *args: Any, examples: str | None = None, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {"allow_abbrev": False, "formatter_class": _HelpFormatter, "prog": program_name()}
        if lines := re.findall(r"^ {4,}\S.*$", examples or "", re.MULTILINE):
            own, shown = r"python -m trace(?:_vlm)?\.[\w.]+", "\n".join(lines)
            front_door = defaults["prog"].startswith("trace-vlm ")
            defaults["epilog"] = EXAMPLES + (re.sub(own, defaults["prog"], shown) if front_door else shown)
        super().__init__(*args, **(defaults | kwargs))
        # argparse's own pattern takes -1e9 for a flag
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)  # writes the words and ends the process
        return super().parse_args(args, namespace)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        for index, word in enumerate(words):
            if word.startswith("--"):
                flag, equals, value = word.partition("=")
                flag = flag.replace("_", "-")
                words[index] = PUBLISHED_FLAGS.get(flag, flag) + equals + value
        return super().parse_known_args(words, namespace)


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main(argv)`; returns its exit code: 0, 1 if the work is incomplete, 2 for a mistake in the
    input, 130 for Ctrl-C, 143 for SIGTERM (of batch systems and containers), which ends it in the same way."""
    unhandled = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if unhandled and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return run(main, argv)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # data may hold what no terminal can show
    try:
        return main(argv) or 0
    except (InputError, Incomplete) as error:
        _say(f"error: {error}")
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:  # the reader (head, less) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        name = "stopped by SIGTERM" if terminated else "interrupted"
        _say(f"{name}; the same command continues where it stopped")
        return 143 if terminated else 130


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def _terminate(*_: object) -> None:
    raise Terminated


def _say(message: str) -> None:
    """Write a line to standard error, above progress bars that are open."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)
    else:
        print(message, file=sys.stderr)


def check_at_least(args: argparse.Namespace, **least: int) -> None:
    """InputError for a flag whose value is below the least one; flags that are not given are left out."""
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise InputError(f"--{name.replace('_', '-')} must be at least {minimum}, not {value}")


def existing_file(path: str | Path, what: str) -> Path:
    """Return `path` if it is a file; the InputError describes it as `what` ("the question file")."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{what} {path} {'is not a file' if path.exists() else 'does not exist'}")
    return path


def existing_folder(path: str | Path, what: str) -> Path:
    """Return `path` if it is a folder; the InputError describes it as `what`."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{what} {path} {'is not a folder' if path.exists() else 'does not exist'}")
    return path


def output_folder(path: str | Path) -> Path:
    """Create `path` if needed; InputError if it cannot be written."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"the output folder {path} cannot be written: {error.strerror or error}") from None
    return path
