"""Short texts about generated views, on which projector and language model are pre-trained before any instruction.

    python -m trace.data.scenes.captions --data DATA --out DATA/captions.json

They take the place of LLaVA's captions, and of what a large language model knows beforehand: the name and place of an
object (the name first, which lets a plain language model bind the two), pointing at it, where one object lies from
another, and the freest spot of the surfaces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.images import on_surface, open_instances
from ...core.points import Point, format_points
from ...core.prompts import IMAGE_TAG, question_text
from ...core.records import Sample, Turn, write_samples
from ...utils.command import Parser, existing_folder, run
from ...utils.files import read_jsonl
from .config import RelationsConfig
from .questions.relations import direction, in_cone, split
from .wording import DIRECTIONS, relation_phrase
from .world.camera import GroundFrame

NAMING = ("Where is the {name}?", "The {name} at {place}")
POINTING = "Point to the {name}."
RELATING = (
    "Where is the {name}? The reference object is the {other}.",
    "The {name} at {place} lies {side} the {other} at {there}",
)
FREE = "Point to free space."
PHRASES = (*NAMING, POINTING, *RELATING, FREE)  # every wording, for the nano tokenizer
PAIRS = 5  # related pairs of a view at the most


def captions(view: Mapping[str, Any], instances: NDArray[np.uint8], decimals: int = 2) -> Iterator[Sample]:
    """All samples of one view; `instances` [height, width] is its instance map."""
    names = Counter(item["name"] for item in view["objects"])
    objects = [item for item in view["objects"] if names[item["name"]] == 1]
    places = {item["name"]: format_points([Point(*item["center"])], decimals).strip("[]") for item in objects}
    texts: list[tuple[str, str, str]] = []
    for name, place in places.items():
        texts.append(("name", NAMING[0].format(name=name), NAMING[1].format(name=name, place=place)))
        texts.append(("point", question_text(POINTING.format(name=name), reasoning=False), f"[{place}]"))
    for name, relation, other in islice(_relations(view, objects), PAIRS):
        words = {"name": name, "place": places[name], "side": relation_phrase(relation)}
        words |= {"other": other, "there": places[other]}
        texts.append(("relate", RELATING[0].format(**words), RELATING[1].format(**words)))
    spot = _freest_spot(instances)
    if spot is not None:
        texts.append(("free", question_text(FREE, reasoning=False), format_points([spot], decimals)))
    meta = {"instances": view["instances"], "view": view["view"]}
    for number, (kind, question, answer) in enumerate(texts):
        turns = (Turn("human", f"{IMAGE_TAG}\n{question}"), Turn("gpt", answer))
        yield Sample(f"{view['view']}_{kind}_{number}", view["image"], turns, meta)


def _relations(view: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Names of two objects of which the first lies clearly in one direction from the second, seen by the camera."""
    pose = np.array(view["camera"]["world_from_camera"])
    right_x, right_y = pose[0, 0], pose[1, 0]
    if abs(pose[2, 0]) > 1e-9:  # rolled: its right is not level
        right_x, right_y = np.array([pose[1, 2], -pose[0, 2]]) / np.hypot(pose[0, 2], pose[1, 2])
    ground, config = GroundFrame((right_x, right_y), (-right_y, right_x)), RelationsConfig()
    pairs = list(permutations(objects, 2))
    rng = np.random.default_rng(list(view["view"].encode()))
    for index in rng.permutation(len(pairs)):
        item, other = pairs[index]
        offset = np.array(item["position"][:2]) - np.array(other["position"][:2])
        for relation in DIRECTIONS:
            along, across = split(offset, np.array(direction(relation, ground)))
            if in_cone(along, across, 0.0, config.cone - config.ambiguity):
                yield item["name"], relation, other["name"]


def _freest_spot(instances: NDArray[np.uint8]) -> Point | None:
    """The visible spot of a surface that is farthest from objects and from its borders; None where none is seen."""
    from scipy.ndimage import distance_transform_edt

    best, spot = 0.0, None
    height, width = instances.shape
    for surface in np.unique(instances[on_surface(instances)]):  # each on its own: a border is no free place
        distance = distance_transform_edt(np.pad(instances == surface, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(distance.argmax(), distance.shape)
        if distance[row, column] > best:
            best = float(distance[row, column])
            spot = Point((float(column) + 0.5) / width, (float(row) + 0.5) / height)
    return spot


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Write pre-training texts about generated scenes.", examples=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder of generated scenes")
    parser.add_argument("--out", type=Path, required=True, help="the training file to write (LLaVA JSON)")
    parser.add_argument("--views", type=int, help="only this many views")
    parser.add_argument("--decimals", type=int, default=2, help="decimals of a coordinate")
    args = parser.parse_args(argv)
    folder = existing_folder(args.data, "the folder of scenes")
    from tqdm import tqdm

    def samples() -> Iterator[Sample]:
        for _, view in tqdm(islice(read_jsonl(folder / "views.jsonl"), args.views), desc="captions", unit=" views"):
            yield from captions(view, open_instances(folder / view["instances"]), args.decimals)

    write_samples(args.out, samples())
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
