"""What every command shares: flags in both spellings, errors in one sentence, exit codes.

A mistake of the user (a missing file, an unknown key, broken JSON) is raised as `InputError` anywhere below, and
`run` turns it into one line on standard error and exit code 2. Anything else is a defect of ours and keeps its
traceback. This module imports nothing heavy, so that `--help` of every command comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something the user gave cannot be used. The message names it, says what was expected and what to do."""


class Incomplete(RuntimeError):
    """A part of the work could not be done, and everything else was. The message names the part and what to do."""


def install_hint(extra: str) -> str:
    """The end of a message about a package that is missing; pip alone does not keep to the tested versions."""
    return f"bash environment_setup.sh --extras {extra} in a clone, or pip install 'trace-vlm[{extra}]'"


def package_versions(*names: str) -> dict[str, str]:
    """Return Python's version and those of the named packages that are installed, as runs record them."""
    from importlib.metadata import PackageNotFoundError, version  # 0.1 s, which no --help has to wait for

    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


NEGATIVE_NUMBER = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts `--image-folder` and `--image_folder` alike and never guesses a prefix."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = NEGATIVE_NUMBER  # argparse's own takes -1e9 for a flag

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([_with_dashes(word) for word in words], namespace)


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main(argv)`; return its exit code: 0, 1 if the work is incomplete, 2 for a mistake
    in the input, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # data may hold what no terminal can show
    try:
        return main(argv) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Incomplete as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (head, less) left: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def existing_file(path: str | Path, what: str) -> Path:
    """`path` as a Path, or an InputError that names it: `what` says what was to be read ("the question file")."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{what} {path} does not exist" if not path.exists() else f"{what} {path} is not a file")
    return path


def existing_folder(path: str | Path, what: str) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{what} {path} does not exist" if not path.exists() else f"{what} {path} is not a folder")
    return path


def output_folder(path: str | Path) -> Path:
    """Create `path` and prove that it can be written; InputError otherwise."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"the output folder {path} cannot be written: {error.strerror or error}") from None
    return path
