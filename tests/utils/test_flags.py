"""Every command uses the same name for the same thing and accepts the published spellings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from trace_vlm.utils.command import PUBLISHED_FLAGS, Parser

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("trace", "visualization", "scripts", "benchmarks")


def defined_flags() -> Iterator[tuple[str, str, ast.Call]]:
    """(file, flag, call) of every flag that an argument parser of the repository defines."""
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or ast.unparse(call.func).split(".")[-1] not in ("add", "add_argument"):
                continue
            for word in call.args:
                if isinstance(word, ast.Constant) and str(word.value).startswith("--"):
                    yield str(path.relative_to(ROOT)), str(word.value), call


DEFINED = list(defined_flags())


def test_flags_are_found() -> None:
    files = {file for file, _, _ in DEFINED}
    assert {"trace/eval/model_vqa.py", "trace/train/train.py", "visualization/attention_map.py"} <= files
    assert set(PUBLISHED_FLAGS.values()) <= {flag for _, flag, _ in DEFINED}


def test_no_command_defines_a_published_spelling() -> None:
    assert [(file, flag) for file, flag, _ in DEFINED if flag in PUBLISHED_FLAGS] == []


def test_reasoning_is_a_switch_everywhere() -> None:
    actions = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}["action"]
        for _, flag, call in DEFINED
        if flag == "--reasoning"
    ]
    assert len(actions) > 1 and set(actions) <= {"argparse.BooleanOptionalAction", "'store_true'"}


@pytest.mark.parametrize(("spelling", "flag"), PUBLISHED_FLAGS.items())
def test_published_spellings_are_accepted(spelling: str, flag: str) -> None:
    parser = Parser()
    parser.add_argument(flag)
    name = flag[2:].replace("-", "_")
    underscored = "--" + spelling[2:].replace("-", "_")
    for words in ([spelling, "x"], [underscored, "x"], [f"{spelling}=x"], [flag, "x"]):
        assert vars(parser.parse_args(words)) == {name: "x"}
