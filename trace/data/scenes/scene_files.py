"""The files of one scene: pictures, masks, instance and depth maps, and the JSON line that describes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.images import FIRST_OBJECT
from ...utils.files import replacing
from .config import DatasetSpec
from .objects.catalog import Body
from .questions.question import Hop, ViewQuestion
from .questions.view import View, describe_body
from .render import SceneRenderer
from .wording import MARK_COLORS
from .world.surfaces import Support

COMPRESSION = {"fast": 1, "small": 3}  # zlib's level, by `camera.packing`
MARK_GAP = 1  # pixels left free between a marked object and its rectangle


def write_scene(
    spec: DatasetSpec, number: int, finished: list[tuple[View, list[ViewQuestion]]], renderer: SceneRenderer,
    rejects: Counter[str],
) -> dict[str, Any]:  # fmt: skip
    """Render the pictures and write every file; return the scene's line."""
    views: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    level = COMPRESSION[spec.config.camera.packing]
    per_view = sum(spec.counts.values())
    for index, (view, questions) in enumerate(finished):
        name = f"{number:06d}_{index}"
        renderer.set_camera(view.camera)
        picture = renderer.color()
        _save(spec.out / "images" / f"{name}.png", picture, level)
        _save(spec.out / "instances" / f"{name}.png", view.instances, level)
        record = _view_record(name, view, [spec.seed, spec.split, number])
        if view.depth is not None:
            millimetres = np.clip(np.round(1000 * view.depth), 0, 65535).astype(np.uint16)
            record["depth"] = f"depth/{name}.png"
            _save(spec.out / record["depth"], millimetres, level)
        views.append(record)
        for position, question in enumerate(questions):
            running = (number * spec.views + index) * per_view + position
            identifier: int | str = running if spec.benchmark else f"{name}_{position}"
            if question.goal.absence:  # they are not numbered among the others, which keep their ids
                identifier = f"{name}_a{position}"
            _save(spec.out / "masks" / f"{identifier}.png", question.goal.mask.astype(np.uint8) * 255, level)
            meta = _question_record(name, identifier, question, view)
            if (absence := question.goal.absence) and absence.near is not None:
                meta["absent"]["near"] = samples[absence.near - position]["id"]
            if question.marks:
                meta["image"] = f"images/{name}_q{position}.png"
                boxes = [reference.box for reference in question.goal.references]
                _save(spec.out / meta["image"], draw_marks(picture, boxes, question.marks), level)
            samples.append({"id": identifier, "instruction": question.instruction, "meta": meta})
    return {"scene": number, "views": views, "samples": samples, "rejects": dict(rejects)}


def _view_record(name: str, view: View, seed: list[int]) -> dict[str, Any]:
    """A line of views.jsonl."""
    camera, room, main = view.camera, view.room, view.room.surfaces[0]
    surfaces = [
        {"name": surface.name, "kind": surface.kind, "instance": surface.instance, "center": list(surface.center),
         "yaw": surface.yaw, "half_size": list(surface.half), "headroom": surface.headroom}
        for surface in room.surfaces
    ]  # fmt: skip
    fixtures = [{"name": block.fixture, "center": list(block.center), "half_size": list(block.half), "yaw": block.yaw}
                for block in room.fixtures]  # fmt: skip
    objects, hidden = [], []
    for slot, (body, seen) in enumerate(zip(view.bodies, view.seen, strict=True)):
        geometry = _geometry(slot, body, view.supports)
        if seen is not None:
            objects.append(seen.as_json() | geometry)
        else:
            pixels = int((view.instances == FIRST_OBJECT + slot).sum())
            hidden.append(describe_body(FIRST_OBJECT + slot, body, None, None, pixels) | geometry)
    return {
        "view": name, "image": f"images/{name}.png", "instances": f"instances/{name}.png",
        "width": camera.width, "height": camera.height,
        "camera": {
            "fovy_deg": math.degrees(camera.fovy), "roll_deg": math.degrees(camera.roll),
            "intrinsics": camera.intrinsics.tolist(), "world_from_camera": camera.world_from_camera.tolist(),
        },
        "surface": {"name": main.name, "center": list(main.center), "half_size": list(main.half)},
        "surfaces": surfaces, "fixtures": fixtures, "objects": objects, "hidden": hidden, "seed": seed,
    }  # fmt: skip


def _geometry(slot: int, body: Body, supports: list[Support]) -> dict[str, Any]:
    """The pose, the oriented box and the footprint of a body, what carries it, and what it can carry."""
    (x, y), z, yaw = body.position, body.z, round(body.yaw, 6)
    half = body.half or (body.radius, body.radius)
    own = {support.area: support.as_area() for support in supports if support.owner == slot}
    footprint: dict[str, Any] = {"shape": "disc", "radius": round(body.radius, 5)}
    if body.half is not None:
        footprint = {"shape": "rectangle", "half_size": _rounded(*body.half), "yaw": yaw}
    quaternion = [round(math.cos(body.yaw / 2), 6), 0.0, 0.0, round(math.sin(body.yaw / 2), 6)]
    center, half_size = _rounded(x, y, z + body.height / 2), _rounded(*half, body.height / 2)
    return {
        "yaw": yaw, "pose": {"position": _rounded(x, y, z), "quaternion": quaternion},
        "box3d": {"center": center, "half_size": half_size, "yaw": yaw}, "footprint": footprint,
        "support": _support_record(supports[body.support]), "top": own.get("top"), "interior": own.get("inside"),
    }  # fmt: skip


def _rounded(*values: float) -> list[float]:
    return [round(value, 5) for value in values]


def _support_record(support: Support) -> dict[str, Any]:
    on_object = {"object": support.instance, "area": support.area}
    return {"surface": support.name} if support.owner is None else on_object


def _question_record(name: str, identifier: int | str, question: ViewQuestion, view: View) -> dict[str, Any]:
    """The `meta` of a sample or benchmark question."""
    goal = question.goal
    target, support = goal.target, goal.support
    # The surface that the words name, or on which the answer is.
    surface = goal.surface or (view.root(target.body) if target else support)
    assert surface is not None
    if surface.owner is not None:
        surface = view.root(view.bodies[surface.owner])
    marks = [{"instance": reference.instance, "color": color, "box": list(reference.box)}
             for reference, color in zip(goal.references, question.marks, strict=False)]  # fmt: skip
    task = goal.absence.task if goal.absence else "object_reference" if target else "free_space"
    meta: dict[str, Any] = {
        "task": task, "kind": goal.kind, "relation": goal.relation,
        "target": target.as_json() if target else None,
        "references": [reference.as_json() for reference in goal.references], "surface": surface.name,
        "view": name, "image": f"images/{name}.png", "mask": f"masks/{identifier}.png",
        "instances": f"instances/{name}.png", "image_size": [view.camera.width, view.camera.height],
        "points": [list(point) for point in question.points],
        "shortcuts": {key: list(point) if point else None for key, point in question.shortcuts.items()},
        "marks": marks,
    }  # fmt: skip
    if absence := goal.absence:
        instead = [seen.as_json() | {"lies": lies} for seen, lies in absence.instead]
        meta["absent"] = {"reason": absence.reason, "looked_for": absence.looked_for, "answer": absence.answer,
                          "instead": instead, "near": None, "word": absence.word}  # fmt: skip
    if support:
        meta["support"] = _support_record(support)
    if goal.removed:
        meta["removed"] = goal.removed.as_json()
    if goal.candidates:
        meta["candidates"] = [candidate.instance for candidate in goal.candidates]
    if goal.extreme:
        last = target or goal.hops[-2].seen  # of free space, what the last relation refers to
        meta["extreme_correct"] = goal.extreme is last
        meta["nearest_correct"] = goal.nearest is last
    if view.config.questions.chain and goal.relation and len(goal.references) == 1:
        hops = goal.hops or (Hop(goal.relation, target),)
        meta["hops"] = [_hop_record(hop) for hop in hops]
    return meta


def _hop_record(hop: Hop) -> dict[str, Any]:
    keys = ("category", "name", "instance", "center")
    seen = hop.seen.as_json() if hop.seen else dict.fromkeys(keys)
    category, name, instance, center = (seen[key] for key in keys)
    return {"relation": hop.relation, "noun": category, "name": name, "instance": instance, "center": center}


def draw_marks(
    image: NDArray[np.uint8], boxes: Sequence[tuple[float, float, float, float]], colors: Sequence[str]
) -> NDArray[np.uint8]:
    """A copy of `image` [height, width, 3] with the outline of each normalised box (x0, y0, x1, y1) in its color.

    The line lies outside of the box, so that it hides nothing of a convex object, but never outside of the picture.
    """
    marked = image.copy()
    height, width = image.shape[:2]
    line = max(1, round(min(width, height) / 160))
    reach = line + MARK_GAP
    for box, color in zip(boxes, colors, strict=True):
        left, top = max(0, round(box[0] * width) - reach), max(0, round(box[1] * height) - reach)
        right, bottom = min(width, round(box[2] * width) + reach), min(height, round(box[3] * height) + reach)
        window = marked[top:bottom, left:right]
        for side in (window[:line], window[-line:], window[:, :line], window[:, -line:]):
            side[...] = MARK_COLORS[color]
    return marked


def _save(path: Path, picture: NDArray[Any], level: int) -> None:
    """Write a picture as PNG, complete or not at all (a sync costs more than the encoding)."""
    with replacing(path, sync=False) as temporary:
        Image.fromarray(picture).save(temporary, "PNG", compress_level=level)
