"""`trace-vlm COMMAND ...`: one door to the commands, each of which is also `python -m trace_vlm.its.module`.

    trace-vlm generate --help

A command's module is imported when that command is asked for, so that `trace-vlm --help` is instant.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .utils.command import InputError, run

# command -> (module and its main, what it does)
COMMANDS = {
    "generate": (".data.scenes.generate:main", "render tabletop scenes with questions, answers and exact masks"),
    "reason": (".data.cor.build:main", "write the reasoning into a training set"),
    "sources": (".data.sources.__main__:main", "check, convert and download training data"),
    "mix": (".data.mix:main", "mix a training set from a recipe"),
    "train": (".train.train:main", "train a model from a YAML configuration"),
    "plan": (".train.plan:main", "memory, hours and disk of a training run, before it starts"),
    "predict": (".inference.predict:main", "one picture, one instruction: the reasoning and its points"),
    "eval": (".eval.model_vqa:main", "let a model answer the questions of a benchmark"),
    "ask": (".eval.api_vqa:main", "let GPT-4o, Gemini or a vLLM / SGLang server answer them"),
    "summarize": (".eval.summarize_vqa:main", "turn answers into accuracy tables"),
    "checkpoint": (
        ".model.checkpoint:main",
        "look at a checkpoint (inspect), convert it, merge an adapter into its base",
    ),
    "convert": (".model.checkpoint:convert_command", "write a checkpoint of any known format as one folder"),
    "attention": (".attention.summary:main", "what may be said about recorded attention: intervals, tests, a verdict"),
    "demo": (".demo.app:main", "ask a model in the browser; nothing leaves this machine"),
    "report": (".report.page:main", "one self-contained page that shows a run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the remaining arguments to the named command; returns its exit code (2 for a mistake in the input)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"trace-vlm {__version__}")
        return 0
    return run(_dispatch, words)


def _dispatch(argv: Sequence[str] | None) -> int | None:
    assert argv
    name, *rest = argv
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise InputError(f"trace-vlm has no command {name!r}: {guess}")
    module, _, function = COMMANDS[name][0].partition(":")
    sys.argv[0] = f"trace-vlm {name}"  # argparse names the command in its messages by this
    command = getattr(importlib.import_module(module, __package__), function)
    result: int | None = command(rest)
    return result


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: trace-vlm COMMAND [arguments]    (trace-vlm COMMAND --help tells a command's own)",
            "",
            "Vision-language models that reason in words before they point.",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
