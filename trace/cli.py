"""`trace-vlm COMMAND ...`: the commands under one name; each is also `python -m trace_vlm.its.module`.

    trace-vlm generate --help

The module of a command is imported when that command is called, so that `trace-vlm --help` is instant.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from . import __version__
from .utils.command import InputError, Parser, program_name, run

# command -> (module:function, what it does)
COMMANDS = {
    "doctor": (".doctor:main", "check this machine: versions, GPU, rendering, disk; what mends what is missing"),
    "generate": (".data.scenes.generate:main", "render tabletop scenes with questions, answers and exact masks"),
    "reason": (".data.cor.build:main", "write the reasoning of a training set"),
    "captions": (".data.scenes.captions:main", "write texts about generated scenes, for pre-training"),
    "baselines": (".data.scenes.questions.baselines:main", "measure the shortcuts of a generated set"),
    "sources": (".data.sources.__main__:main", "check, convert and download training data"),
    "mix": (".data.mix:main", "mix a training set from a recipe"),
    "train": (".train.train:main", "train a model from a YAML configuration"),
    "plan": (".train.plan:main", "memory, hours and disk of a training run, before it starts"),
    "predict": (".inference.predict:main", "point at something in one image: reasoning and points"),
    "benchmarks": (".eval.published_benchmarks:main", "list the published benchmarks, or import one"),
    "make-benchmark": (".eval.make_benchmark:main", "make a benchmark from a CSV, LabelMe or COCO annotations"),
    "eval": (".eval.model_vqa:main", "answer the questions of a benchmark with a local model"),
    "ask": (".eval.api_vqa:main", "answer them with GPT-4o, Gemini or a vLLM / SGLang server"),
    "summarize": (".eval.summarize_vqa:main", "turn answers into accuracy tables"),
    "lmms-eval-tasks": (".eval.lmms_eval_tasks:main", "print the folder of our benchmarks' tasks for lmms-eval"),
    "checkpoint": (".model.checkpoint:main", "inspect a checkpoint, convert it, merge an adapter into its base"),
    "convert": (".model.checkpoint:convert_command", "write a checkpoint of any known format as one folder"),
    "attention": (".attention.summary:main", "summarize recorded attention: intervals, tests, a verdict"),
    "serve": (".serve.serve:main", "answer over HTTP: OpenAI's protocol, or an image and an instruction"),
    "demo": (".demo.app:main", "ask a model in the browser; nothing leaves this machine"),
    "report": (".report.page:main", "one self-contained page about a run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Call the named command with the remaining arguments; returns its exit code (2 for a mistake in the input)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for words: eval "$(register-python-argcomplete trace-vlm)"
        typed = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
        words = typed.split()[1:]
        if len(words) + typed[-1:].isspace() < 2:
            parser = Parser(add_help=False)
            parser.add_argument("command", choices=COMMANDS)
            parser.parse_args(())
        os.environ["_ARGCOMPLETE"] = "2"  # the command's own parser does not see its name
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: trace-vlm COMMAND [arguments]    (trace-vlm COMMAND --help shows the arguments of one)\n")
        print("Vision-language models that reason in words before they point.\n")
        print("\n".join(f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()))
        return 0
    if words[0] == "--version":
        print(f"trace-vlm {__version__}")
        return 0
    return run(_call, words)


def _call(argv: Sequence[str] | None) -> int | None:
    assert argv
    name, *rest = argv
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f"Did you mean {close[0]}?" if close else f"Known commands: {', '.join(COMMANDS)}"
        raise InputError(f"trace-vlm has no command {name!r}. {guess}")
    sys.argv[0] = f"{program_name()} {name}"
    module, _, function = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module, __package__), function)
    result: int | None = command(rest)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
