"""Short naming questions about generated views: what a projector is pre-trained on before any instruction.

    python -m trace.data.scenes.naming --data DATA --out DATA/naming.json

For every object that its name singles out in a view, two samples. "Where is the red ball?" - "The red ball at (0.46,
0.52)":
the answer repeats the name before the place, which is what lets a plain language model learn to bind the two. And the
direct question in the format of pointing data, whose answer is the place alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...command import Parser, existing_folder, run
from ...points import Point, format_points
from ...prompts import IMAGE_TAG, question_text
from ...records import Sample, Turn, read_jsonl, write_samples

QUESTION = "Where is the {name}?"
ANSWER = "The {name} at {place}"
POINTING = "Point to the {name}."


def naming_samples(view: Mapping[str, Any], decimals: int = 2) -> Iterator[Sample]:
    """Two samples, naming and pointing, for each object of a view whose name no other object shares."""
    names = Counter(item["name"] for item in view["objects"])
    meta = {"instances": view["instances"], "view": view["view"]}
    for item in view["objects"]:
        name = item["name"]
        if names[name] == 1:
            points = format_points([Point(*item["center"])], decimals)
            pairs = {
                "name": (QUESTION.format(name=name), ANSWER.format(name=name, place=points.strip("[]"))),
                "point": (question_text(POINTING.format(name=name), reasoning=False), points),
            }
            for kind, (question, answer) in pairs.items():
                turns = (Turn("human", f"{IMAGE_TAG}\n{question}"), Turn("gpt", answer))
                yield Sample(f"{view['view']}_{kind}_{item['instance']}", view["image"], turns, meta)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.data.scenes.naming", description="Write naming questions for generated scenes.")
    parser.add_argument("--data", type=Path, required=True, help="a folder of generated scenes")
    parser.add_argument("--out", type=Path, required=True, help="the training file to write (LLaVA JSON)")
    parser.add_argument("--decimals", type=int, default=2, help="decimals of a coordinate")
    args = parser.parse_args(argv)
    views = existing_folder(args.data, "the folder of scenes") / "views.jsonl"
    write_samples(args.out, (sample for _, view in read_jsonl(views) for sample in naming_samples(view, args.decimals)))
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
