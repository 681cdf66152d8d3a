"""Where a model looks while it reasons: attention over the image for each of the five milestones.

    python visualization/attention_map.py --model-path M --dataset-dir datasets/where2place --output-dir OUT \\
        --start-idx 0 --end-idx 25 --resume

Each question is answered once, greedily; attention is read out while the answer is generated. For every milestone
that the answer holds one picture is written (heat-map over the original image, ground truth in cyan, predicted
points in red, the step's words below, one colour scale over all steps), all of them in one strip, and a record with
the numbers. `--resume` skips questions whose files are whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_vlm.command import InputError, Parser, output_folder, run

if TYPE_CHECKING:
    from trace_vlm.eval.suites import Suite
    from trace_vlm.model.checkpoint import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)

    from trace_vlm.eval.suites import open_suite

    suite = open_suite(arguments.dataset_dir, arguments.question_file)
    end = len(suite.questions) if arguments.end_idx is None else min(arguments.end_idx, len(suite.questions))
    if not 0 <= arguments.start_idx < end:
        raise InputError(
            f"--start-idx {arguments.start_idx} to --end-idx {arguments.end_idx} is no part of the "
            f"{len(suite.questions)} questions in {suite.question_file}"
        )
    folder = output_folder(arguments.output_dir)

    from tqdm import tqdm

    from trace_vlm.eval.model_vqa import fingerprint
    from trace_vlm.galleries import whole, write_attention_index

    settings = {
        "model": fingerprint(arguments.model_path),
        "model_base": fingerprint(arguments.model_base) if arguments.model_base else None,
        "layers": arguments.layers,
        "max_new_tokens": arguments.max_new_tokens,
        "conv_mode": arguments.conv_mode,
    }
    asked = [(place, suite.questions[place]) for place in range(arguments.start_idx, end)]
    wanted = [
        (place, question)
        for place, question in asked
        if not (arguments.resume and whole(folder, question.question_id, settings))
    ]
    if len(wanted) < len(asked):
        print(f"{len(asked) - len(wanted)} of {len(asked)} questions are whole already")
    failures: dict[str, str] = {}
    if wanted:
        from trace_vlm.model.predictor import Predictor

        checkpoint = Predictor.load(
            arguments.model_path, arguments.model_base, arguments.device, arguments.dtype
        ).checkpoint
        for place, question in tqdm(wanted, unit="question"):
            try:
                _draw(folder, checkpoint, suite, place, arguments, settings)
            except InputError as error:  # one bad image does not end a long run
                failures[str(question.question_id)] = str(error)
    write_attention_index(folder, failures)
    for name, reason in failures.items():
        print(f"question {name} failed: {reason}")
    print(f"{len(wanted) - len(failures)} questions drawn into {folder}")
    return 1 if failures else 0


def _parser() -> Parser:
    parser = Parser(description="Attention to the image during each step of the reasoning.")
    parser.add_argument("--model-path", required=True, help="folder of the model")
    parser.add_argument("--model-base", help="the model that an adapter belongs to")
    parser.add_argument("--dataset-dir", "--data-dir", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--question-file", help="a path, or a name in the folder; point_questions.jsonl if absent")
    parser.add_argument("--output-dir", "--output", type=Path, required=True)
    parser.add_argument("--start-idx", type=int, default=0, help="first question, counted from 0")
    parser.add_argument("--end-idx", type=int, help="one past the last question; all if absent")
    parser.add_argument("--resume", action="store_true", help="skip questions whose files are whole")
    parser.add_argument("--layers", type=int, nargs="+", help="decoder layers to average; the last three if absent")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--conv-mode", default="vicuna_v1", help="conversation template")
    parser.add_argument("--device", help="as torch names it; a GPU if there is one")
    parser.add_argument("--dtype", help="of the weights; float32 on a CPU, bfloat16 on a GPU")
    return parser


def _draw(
    folder: Path,
    checkpoint: Checkpoint,
    suite: Suite,
    place: int,
    arguments: argparse.Namespace,
    settings: Mapping[str, Any],
) -> None:
    """Ask and draw the question at `place`. InputError: its image or mask cannot be used."""
    from trace_vlm.galleries import write_attended
    from trace_vlm.images import open_image
    from trace_vlm.milestones import analyse

    question = suite.questions[place]
    image = open_image(suite.image_path(question))
    mask = suite.mask(question) if suite.masks else None
    maps = analyse(checkpoint, image, question.text, arguments.layers, arguments.max_new_tokens, arguments.conv_mode)
    write_attended(folder, place, question, image, mask, maps, checkpoint.name, settings)


if __name__ == "__main__":
    raise SystemExit(run(main))
