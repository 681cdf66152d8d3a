"""Short texts about generated views: what projector and language model are pre-trained on before any instruction.

    python -m trace.data.scenes.captions --data DATA --out DATA/captions.json

The place of LLaVA's caption pre-training, and of what a large language model knows beforehand. Of every view:

* naming, for each object that its name singles out: "Where is the red ball?" - "The red ball at (0.46, 0.52)". It
  repeats the name before the place, which lets a plain language model learn to bind the two;
* pointing: the same objects in the format of pointing data, whose answer is the place alone;
* relating: where one object lies from another, "The red ball at (0.46, 0.52) lies to the left of the blue box at (0.70,
  0.50)", for pairs whose direction is clear;
* the freest spot of the surfaces, where one is seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.images import open_instances
from ...core.points import Point, format_points
from ...core.prompts import IMAGE_TAG, question_text
from ...core.records import Sample, Turn, read_jsonl, write_samples
from ...utils.command import Parser, existing_folder, run
from .config import RelationsConfig
from .instances import on_surface
from .questions.relations import direction, in_cone, split
from .questions.wording import DIRECTIONS, relation_phrase
from .world.camera import GroundFrame

NAMING = ("Where is the {name}?", "The {name} at {place}")
POINTING = "Point to the {name}."
RELATING = (
    "Where is the {name}? The reference object is the {other}.",
    "The {name} at {place} lies {side} the {other} at {there}",
)
FREE = "Point to free space."
PAIRS = 5  # related pairs of a view at the most


def phrases() -> list[str]:
    """Every wording, for the nano tokenizer."""
    return [*NAMING, POINTING, *RELATING, FREE]


def captions(view: Mapping[str, Any], instances: NDArray[np.uint8], decimals: int = 2) -> Iterator[Sample]:
    """All samples of one view; `instances` [height, width] is its instance map."""
    names = Counter(item["name"] for item in view["objects"])
    objects = [item for item in view["objects"] if names[item["name"]] == 1]
    texts = [text for item in objects for text in _about(item, decimals)]
    texts += _relations(view, objects, decimals)
    spot = _freest(instances)
    if spot is not None:
        texts.append(("free", question_text(FREE, reasoning=False), format_points([spot], decimals)))
    meta = {"instances": view["instances"], "view": view["view"]}
    for number, (kind, question, answer) in enumerate(texts):
        turns = (Turn("human", f"{IMAGE_TAG}\n{question}"), Turn("gpt", answer))
        yield Sample(f"{view['view']}_{kind}_{number}", view["image"], turns, meta)


def _place(item: Mapping[str, Any], decimals: int) -> str:
    return format_points([Point(*item["center"])], decimals).strip("[]")


def _about(item: Mapping[str, Any], decimals: int) -> Iterator[tuple[str, str, str]]:
    name, place = item["name"], _place(item, decimals)
    yield "name", NAMING[0].format(name=name), NAMING[1].format(name=name, place=place)
    yield "point", question_text(POINTING.format(name=name), reasoning=False), f"[{place}]"


def _relations(
    view: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], decimals: int
) -> Iterator[tuple[str, str, str]]:
    """Pairs that lie clearly in one direction from each other, seen by the camera; a few, spread over the view."""
    pose = np.array(view["camera"]["world_from_camera"])
    right_x, right_y = pose[0, 0], pose[1, 0]
    if abs(pose[2, 0]) > 1e-9:  # rolled: its right is not level
        right_x, right_y = np.array([pose[1, 2], -pose[0, 2]]) / np.hypot(pose[0, 2], pose[1, 2])
    ground, config = GroundFrame((right_x, right_y), (-right_y, right_x)), RelationsConfig()
    pairs = list(permutations(objects, 2))
    rng = np.random.default_rng(list(view["view"].encode()))
    found = 0
    for index in rng.permutation(len(pairs)):
        one, other = pairs[index]
        offset = np.array(one["position"][:2]) - np.array(other["position"][:2])
        for relation in DIRECTIONS:
            along, across = split(offset, np.array(direction(relation, ground)))
            if found < PAIRS and in_cone(along, across, 0.0, config.cone - config.ambiguity):
                found += 1
                facts = {"name": one["name"], "place": _place(one, decimals), "side": relation_phrase(relation)}
                facts |= {"other": other["name"], "there": _place(other, decimals)}
                yield "relate", RELATING[0].format(**facts), RELATING[1].format(**facts)


def _freest(instances: NDArray[np.uint8]) -> Point | None:
    """The visible spot of a surface that is farthest from objects and from its borders; None where none is seen."""
    from scipy.ndimage import distance_transform_edt

    best, spot = 0.0, None
    height, width = instances.shape
    for surface in np.unique(
        instances[on_surface(instances)]
    ):  # each on its own: a border between two is no free place
        distance = distance_transform_edt(np.pad(instances == surface, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(distance.argmax(), distance.shape)
        if distance[row, column] > best:
            best = float(distance[row, column])
            spot = Point((math.floor(column) + 0.5) / width, (math.floor(row) + 0.5) / height)
    return spot


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.data.scenes.captions", description="Write pre-training texts about generated scenes.")
    parser.add_argument("--data", type=Path, required=True, help="a folder of generated scenes")
    parser.add_argument("--out", type=Path, required=True, help="the training file to write (LLaVA JSON)")
    parser.add_argument("--views", type=int, help="only the first ones")
    parser.add_argument("--decimals", type=int, default=2, help="decimals of a coordinate")
    args = parser.parse_args(argv)
    folder = existing_folder(args.data, "the folder of scenes")
    from itertools import islice

    from tqdm import tqdm

    def samples() -> Iterator[Sample]:
        for _, view in tqdm(islice(read_jsonl(folder / "views.jsonl"), args.views), desc="captions", unit=" views"):
            yield from captions(view, open_instances(folder / view["instances"]), args.decimals)

    write_samples(args.out, samples())
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
