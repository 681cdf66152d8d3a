"""Pages of the reference that are made from the code: commands from their parsers, configuration from its classes.

Run by mkdocs (mkdocs.yml).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import html
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import mkdocs_gen_files

from trace_vlm.cli import COMMANDS
from trace_vlm.data.scenes.config import SceneConfig
from trace_vlm.train.config import TrainConfig
from trace_vlm.utils.command import Parser

# What the package promises to Python: a heading, and the names below it.
API = {
    "Ask a model": ["inference.predictor.Predictor", "inference.predictor.Prediction", "inference.answer.PointAnswer",
                    "inference.generation.Decoding"],
    "Formats": ["core.points", "core.reasoning", "core.absence", "core.records", "core.prompts"],
    "Points in space": ["inference.backprojection"],
    "Models": ["model.checkpoint.load", "model.families.base.Checkpoint"],
    "Evaluation": ["eval.benchmark", "eval.scoring.score_response", "eval.statistics"],
}  # fmt: skip


class _Found(Exception):
    """Carries a command's parser out of its `main`."""


def parsers() -> Iterator[tuple[str, Parser]]:
    """Yield every command and its parser; those of sub-commands follow."""

    def stop(parser: Parser, *arguments: Any) -> None:
        raise _Found(parser)

    real, Parser.parse_args = Parser.parse_args, stop
    try:
        for name, (target, _) in COMMANDS.items():
            module, _, function = target.partition(":")
            sys.argv[0] = f"trace-vlm {name}"
            try:
                getattr(importlib.import_module(f"trace_vlm{module}"), function)([])
            except _Found as found:
                (parser,) = found.args
                yield f"trace-vlm {name}", parser
                for action in parser._actions:
                    for sub, child in (action.choices or {}).items() if hasattr(action, "add_parser") else ():
                        yield f"trace-vlm {name} {sub}", child
    finally:
        Parser.parse_args = real


def field_comments(kind: type) -> dict[str, str]:
    """Return the comment at the end of each field's line, or in the lines above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines, comments = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            rest = lines[node.end_lineno - 1][node.end_col_offset :]
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, line.strip(" #"))
            comments[node.target.id] = rest.partition("#")[2].strip() or " ".join(above)
    return comments


def configuration(kind: type, name: str, seen: set[type]) -> Iterator[str]:
    """Yield a table of the keys of a configuration class, then those of the classes inside it."""
    seen.add(kind)
    yield f"## `{name}`\n\n{inspect.cleandoc(kind.__doc__ or '')}\n"
    yield "| key | type | default | |\n| --- | --- | --- | --- |"
    comments, inner = field_comments(kind), []
    for field in dataclasses.fields(kind):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = getattr(default, "default", default)  # of pydantic's Field
        shown = "required" if shown is dataclasses.MISSING or repr(shown) == "PydanticUndefined" else shown
        if dataclasses.is_dataclass(shown):
            inner.append((type(shown), field.name))
            shown = "see below"
        kinds, shown = (html.escape(str(text)).replace("|", "&#124;") for text in (field.type, shown))
        comment = comments.get(field.name, "").replace("|", "\\|")
        yield f"| `{field.name}` | <code>{kinds}</code> | {f'<code>{shown}</code>' if shown else 'empty'} | {comment} |"
        module = sys.modules[kind.__module__]
        for word in set(str(field.type).replace("[", " ").replace("]", " ").replace("|", " ").split()):
            other = getattr(module, word, None)
            if dataclasses.is_dataclass(other) and other not in seen and (other, field.name) not in inner:
                inner.append((other, field.name))
    yield ""
    for other, key in inner:
        if other not in seen:
            yield from configuration(other, f"{name}.{key}".removeprefix("training."), seen)


def write() -> None:
    with mkdocs_gen_files.open("reference/commands.md", "w") as page:
        print("# Commands\n\nEvery command is also `python -m trace_vlm.its.module`.\n", file=page)
        for name, parser in parsers():
            parser.prog = name
            print(f"## {name}\n\n```text\n{parser.format_help().strip()}\n```\n", file=page)
    with mkdocs_gen_files.open("reference/configuration.md", "w") as page:
        print("# Configuration\n\nKeys of a training run (`trace-vlm train --config`) and of a world of scenes "
              "(`trace-vlm generate --config`).\n", file=page)  # fmt: skip
        for kind, name in ((TrainConfig, "training"), (SceneConfig, "scenes")):
            print("\n".join(configuration(kind, name, set())), file=page)
    with mkdocs_gen_files.open("reference/python.md", "w") as page:
        print("# Python\n", file=page)
        for title, names in API.items():
            print(f"## {title}\n", file=page)
            for name in names:
                print(f"::: trace_vlm.{name}\n    options: {{heading_level: 3}}\n", file=page)


with contextlib.redirect_stdout(sys.stderr):
    write()
