"""The files of one scene: pictures, masks, instance and depth maps, and what its line says of them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .instances import FIRST_OBJECT
from .objects.catalog import Body
from .questions.common import ViewQuestion
from .questions.rectangles import draw_marks
from .questions.view import View
from .render import SceneRenderer
from .world.camera import Camera
from .world.surfaces import Room, Support, supports_of

if TYPE_CHECKING:
    from .scene import Job

Floats = NDArray[np.float64]
COMPRESSION = {"fast": 1, "small": 3}  # zlib's level, by `camera.packing`


@dataclass(frozen=True, slots=True)
class Shot:
    """A view that passed: its camera, its questions, its depth in metres where it is wanted."""

    camera: Camera
    view: View
    questions: list[ViewQuestion]
    depth: Floats | None


def write_scene(
    job: Job,
    number: int,
    bodies: list[Body],
    room: Room,
    shots: list[Shot],
    renderer: SceneRenderer,
    rejects: Counter[str],
) -> dict[str, Any]:
    """Render the pictures and write every file; returns the scene's line."""
    views, samples = [], []
    level = COMPRESSION[job.config.camera.packing]
    per_view = sum(job.counts.values())
    for index, shot in enumerate(shots):
        name = f"{number:06d}_{index}"
        renderer.set_camera(shot.camera)
        picture = renderer.color()
        _save(job.out / "images" / f"{name}.png", picture, level)
        _save(job.out / "instances" / f"{name}.png", shot.view.instances, level)
        if shot.depth is not None:
            millimetres = np.clip(np.round(1000 * shot.depth), 0, 65535).astype(np.uint16)
            _save(job.out / "depth" / f"{name}.png", millimetres, level)
        views.append(_view(job, number, name, bodies, room, shot))
        for place, question in enumerate(shot.questions):
            running = (number * job.views + index) * per_view + place
            identifier: int | str = running if job.benchmark else f"{name}_{place}"
            _save(job.out / "masks" / f"{identifier}.png", question.goal.mask.astype(np.uint8) * 255, level)
            meta = _meta(name, identifier, question, shot.view)
            if question.marks:
                meta["image"] = f"images/{name}_q{place}.png"
                boxes = [reference.box for reference in question.goal.references]
                _save(job.out / meta["image"], draw_marks(picture, boxes, question.marks), level)
            samples.append({"id": identifier, "instruction": question.instruction, "meta": meta})
    return {"scene": number, "views": views, "samples": samples, "rejects": dict(rejects)}


def _view(job: Job, number: int, name: str, bodies: list[Body], room: Room, shot: Shot) -> dict[str, Any]:
    camera = shot.camera
    main = room.surfaces[0]
    supports = supports_of(bodies, room.surfaces)
    record: dict[str, Any] = {
        "view": name,
        "image": f"images/{name}.png",
        "instances": f"instances/{name}.png",
        "width": camera.width,
        "height": camera.height,
        "camera": {
            "fovy_deg": math.degrees(camera.fovy),
            "roll_deg": math.degrees(camera.roll),
            "intrinsics": camera.intrinsics.tolist(),
            "world_from_camera": camera.world_from_camera.tolist(),
        },
        "surface": {"name": main.name, "center": list(main.center), "half_size": list(main.half)},
        "surfaces": [_surface(surface) for surface in room.surfaces],
        "fixtures": [
            {"name": block.fixture, "center": list(block.center), "half_size": list(block.half), "yaw": block.yaw}
            for block in room.fixtures
        ],
        "objects": [],
        "hidden": [],
        "seed": [job.seed, job.split, number],
    }
    if shot.depth is not None:
        record["depth"] = f"depth/{name}.png"
    for slot, body in enumerate(bodies):
        seen = shot.view.seen[slot]
        geometry = _geometry(slot, body, supports)
        if seen is not None:
            record["objects"].append(seen.as_json() | geometry)
        else:
            pixels = int((shot.view.instances == FIRST_OBJECT + slot).sum())
            record["hidden"].append(_unseen(slot, body, pixels) | geometry)
    return record


def _surface(surface: Support) -> dict[str, Any]:
    return {
        "name": surface.name,
        "kind": surface.kind,
        "instance": surface.instance,
        "center": list(surface.center),
        "yaw": surface.yaw,
        "half_size": list(surface.half),
        "headroom": surface.headroom,
    }


def _unseen(slot: int, body: Body, pixels: int) -> dict[str, Any]:
    x, y = body.position
    return {
        "instance": FIRST_OBJECT + slot, "name": body.name, "category": body.category, "color": body.color,
        "center": None, "box": None, "pixels": pixels, "position": [round(x, 5), round(y, 5), round(body.z, 5)],
        "radius": round(body.radius, 5), "height": round(body.height, 5),
    }  # fmt: skip


def _geometry(slot: int, body: Body, supports: list[Support]) -> dict[str, Any]:
    """The pose, the oriented box and the footprint of a body, what carries it, and what it can carry."""
    x, y = body.position
    half = body.half or (body.radius, body.radius)
    own = {place.area: place.as_area() for place in supports if place.owner == slot}
    footprint: dict[str, Any] = {"shape": "disc", "radius": round(body.radius, 5)}
    if body.half is not None:
        footprint = {"shape": "rectangle", "half_size": _rounded(body.half), "yaw": round(body.yaw, 6)}
    return {
        "yaw": round(body.yaw, 6),
        "pose": {
            "position": _rounded((x, y, body.z)),
            "quaternion": [round(math.cos(body.yaw / 2), 6), 0.0, 0.0, round(math.sin(body.yaw / 2), 6)],
        },
        "box3d": {
            "center": _rounded((x, y, body.z + body.height / 2)),
            "half_size": _rounded((*half, body.height / 2)),
            "yaw": round(body.yaw, 6),
        },
        "footprint": footprint,
        "support": support_json(supports[body.support]),
        "top": own.get("top"),
        "interior": own.get("inside"),
    }


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 5) for value in values]


def support_json(place: Support) -> dict[str, Any]:
    if place.owner is None:
        return {"surface": place.name}
    return {"object": place.instance, "area": place.area}


def _meta(view: str, identifier: int | str, question: ViewQuestion, seen: View) -> dict[str, Any]:
    """What a sample or a benchmark question records beyond its text."""
    goal = question.goal
    target = goal.target
    meta: dict[str, Any] = {
        "task": "object_reference" if target else "free_space",
        "kind": goal.kind,
        "relation": goal.relation,
        "target": target.as_json() if target else None,
        "references": [reference.as_json() for reference in goal.references],
        "surface": _surface_of(question, seen),
        "view": view,
        "image": f"images/{view}.png",
        "mask": f"masks/{identifier}.png",
        "instances": f"instances/{view}.png",
        "image_size": [seen.camera.width, seen.camera.height],
        "points": [list(point) for point in question.points],
        "shortcuts": {name: list(point) if point else None for name, point in question.shortcuts.items()},
        "marks": [
            {"instance": reference.instance, "color": color, "box": list(reference.box)}
            for reference, color in zip(goal.references, question.marks, strict=False)
        ],
    }
    if goal.place:
        meta["support"] = support_json(goal.place)
    if goal.removed:
        meta["removed"] = goal.removed.as_json()
    if goal.kind == "relational":
        meta["candidates"] = [candidate.instance for candidate in goal.candidates]
    if goal.extreme:
        meta["extreme_correct"] = goal.extreme is target
        meta["nearest_correct"] = goal.nearest is target
    return meta


def _surface_of(question: ViewQuestion, view: View) -> str:
    """The surface that the words name, or on which the answer is."""
    goal = question.goal
    if goal.surface:
        return goal.surface.name
    if goal.target:
        return view.root(goal.target.body).name
    assert goal.place is not None
    place = goal.place
    return place.name if place.owner is None else view.root(view.bodies[place.owner]).name


def _save(path: Path, picture: NDArray[Any], level: int) -> None:
    """Write a picture as PNG, complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(temporary, "PNG", compress_level=level)
    temporary.replace(path)
