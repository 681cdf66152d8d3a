"""Write the reasoning of a training set: the same samples, their answers preceded by a Chain of Reasoning.

    python -m trace.data.reasoners.build --data DATA/data.json --out DATA/cor.json --reasoner rules [--coordinates]

The final answer stays the sample's own, to the character. A sample whose reasoning cannot be written goes to
`OUT.rejects.jsonl` with its reason; it is never given half a reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...command import InputError, Parser, existing_file, run
from ...points import parse_points
from ...prompts import IMAGE_TAG, question_text
from ...reasoning import parse, render
from ...records import JsonlWriter, Sample, Turn, read_samples, write_samples
from . import rules

REASONERS = ("rules",)


def with_reasoning(sample: Sample, seed: int, coordinates: bool, decimals: int) -> Sample:
    """The sample with reasoning before its answer and the request for it in its question.

    The wording is drawn from the seed and the sample's id, so it does not depend on the order of the file.

    Raises:
        ValueError: its `meta` does not carry what the sentences state, or the answer holds no points.
    """
    if len(sample.conversations) != 2:
        raise ValueError(f"{len(sample.conversations)} turns; expected one question and one answer")
    question, answer = sample.conversations
    points = parse_points(answer.text)
    if not points:
        raise ValueError("the answer holds no points")
    rng = np.random.default_rng([seed, *sample.id.encode()])
    text = render(rules.reason(sample, rng, coordinates, decimals), points, decimals)
    if parse(text).points != tuple(points):
        raise ValueError(f"the answer has more than {decimals} decimals")
    asked = f"{IMAGE_TAG}\n{question_text(question.text, reasoning=True)}"
    return Sample(sample.id, sample.image, (Turn("human", asked), Turn("gpt", text)), sample.meta)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.data.reasoners.build", description="Write a Chain of Reasoning for every sample.")
    parser.add_argument("--data", type=Path, required=True, help="training file (LLaVA JSON) with `meta`")
    parser.add_argument(
        "--image-folder", type=Path, help="what image names are relative to (rules do not look at them)"
    )
    parser.add_argument("--out", type=Path, required=True, help="training file to write")
    parser.add_argument("--reasoner", choices=REASONERS, default="rules", help="who writes")
    parser.add_argument("--coordinates", action="store_true", help="locate reference objects inside the steps")
    parser.add_argument("--decimals", type=int, default=3, help="decimals of a coordinate")
    parser.add_argument("--seed", type=int, default=0, help="of the wording")
    args = parser.parse_args(argv)
    existing_file(args.data, "the training file")
    from tqdm import tqdm

    rejects = args.out.with_name(args.out.name + ".rejects.jsonl")
    rejects.unlink(missing_ok=True)
    counts = {"written": 0, "rejected": 0}

    def written() -> Iterator[Sample]:
        for sample in tqdm(read_samples(args.data), desc="reasoning", unit=" samples"):
            try:
                result = with_reasoning(sample, args.seed, args.coordinates, args.decimals)
            except ValueError as error:
                counts["rejected"] += 1
                with JsonlWriter(rejects) as file:
                    file.write({"id": sample.id, "reason": str(error)})
                continue
            counts["written"] += 1
            yield result

    write_samples(args.out, written())
    print(f"{args.out}: {counts['written']} samples with reasoning, {counts['rejected']} rejected")
    if not counts["written"]:
        raise InputError(f"no sample of {args.data} could be given reasoning; the reasons are in {rejects}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
