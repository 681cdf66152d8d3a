"""Whether a scene stands by itself: MuJoCo's physics on simple collision shapes.

Every object falls freely for a moment. What stays upright where it was put is stable, and keeps the place to which the
physics moved it; its last fraction of a degree of tilt, which comes from soft contacts, is taken out. A scene of which
an object falls over, slides or falls off is rejected with that reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..config import WorldConfig
from ..gl import mujoco
from ..objects.catalog import Body
from ..objects.primitives import Part, outline
from .surfaces import Block, Reject, Room, Support, supports_of

Floats = NDArray[np.float64]

STEP = 0.004  # seconds
LIFT = 0.0005  # metres above the support at the start
FALLEN = 0.02  # metres below the support: it has fallen off
WALLS = 10  # boxes that make the wall of a round container
ROUND = 0.75  # half side of the box that stands for something round, as a part of its radius
THIN = 0.004  # half thickness of such a box at the least


def settle(bodies: Sequence[Body], room: Room, config: WorldConfig) -> list[Body]:
    """The bodies where they come to rest. Reject when one does not stay where it was put."""
    supports = supports_of(bodies, room.surfaces)
    model = mujoco.MjModel.from_xml_string(_model_xml(bodies, room))
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, round(config.settle / STEP))
    settled = []
    for number, body in enumerate(bodies):
        position, quaternion = data.qpos[7 * number : 7 * number + 3], data.qpos[7 * number + 3 : 7 * number + 7]
        if not np.isfinite(position).all():
            raise Reject("the physics became unstable")
        settled.append(_judged(body, supports[body.support], position, quaternion, config))
    return _on_their_supports(settled, room)


def _judged(body: Body, support: Support, position: Floats, quaternion: Floats, config: WorldConfig) -> Body:
    w, x, y, z = quaternion.tolist()
    if position[2] < support.center[2] - FALLEN:
        raise Reject("an object falls off its support")
    tilt = math.degrees(math.acos(min(1.0, max(-1.0, 1 - 2 * (x * x + y * y)))))
    if tilt > config.max_tilt:
        raise Reject("an object falls over")
    if math.dist(position[:2].tolist(), body.position) > config.max_shift:
        raise Reject("an object slides or rolls away")
    yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return replace(body, position=(float(position[0]), float(position[1])), yaw=yaw)


def _on_their_supports(bodies: list[Body], room: Room) -> list[Body]:
    """Heights follow from what carries what; Reject when one is no longer over its support."""
    for number, body in enumerate(bodies):
        place = supports_of(bodies, room.surfaces)[body.support]
        if place.inset(np.array(body.position)) < 0:
            raise Reject("an object slides or rolls away")
        bodies[number] = replace(body, z=place.center[2])
    return bodies


def _model_xml(bodies: Sequence[Body], room: Room) -> str:
    furniture = "".join(_block_xml(block) for block in room.blocks if block.solid)
    objects = "".join(
        f'<body pos="{body.position[0]:.6f} {body.position[1]:.6f} {body.z + LIFT:.6f}" euler="0 0 {body.yaw:.6f}">'
        f"<freejoint/>{''.join(_collision(body))}</body>"
        for body in bodies
    )
    return f"""<mujoco><compiler angle="radian"/><option timestep="{STEP}" integrator="implicitfast" iterations="20"
    ls_iterations="10"/><default><geom friction="1 0.02 0.002" condim="4" density="300" solref="0.01 1"/></default>
    <worldbody>{furniture}{objects}</worldbody></mujoco>"""


def _block_xml(block: Block) -> str:
    x, y, z = block.center
    size = " ".join(f"{value:.6f}" for value in block.half[: 3 if block.shape == "box" else 2])
    place = f'pos="{x:.6f} {y:.6f} {z:.6f}" euler="0 0 {block.yaw:.6f}"'
    return f'<geom type="{block.shape}" size="{size}" {place} contype="1" conaffinity="1"/>'


def _collision(body: Body) -> list[str]:
    """The shapes that stand for a body: its foot's slice, its bulk above, and for containers floor and wall."""
    points = np.concatenate([outline(part) for part in body.parts]) if body.asset is None else None
    if points is None:
        half = body.half or (body.radius, body.radius)
        return [_box((half[0], half[1], body.height / 2), (0, 0, body.height / 2))]
    holder = next((part for part in body.parts if part.role == "interior"), None)
    if holder is not None:
        return _container(body, holder, points)
    foot = points[points[:, 2] < 0.06 * body.height + 0.001]
    part = ROUND if body.half is None else 1.0
    return [_slice(foot, 0.0, body.height * 0.1, part), _slice(points, body.height * 0.1, body.height, part)]


def _slice(points: Floats, low: float, high: float, part: float = 1.0) -> str:
    """A box around what lies between two heights, or this part of it."""
    least, most = points[:, :2].min(0), points[:, :2].max(0)
    center, half = (least + most) / 2, np.maximum(part * (most - least) / 2, THIN)
    return _box((half[0], half[1], (high - low) / 2), (center[0], center[1], (low + high) / 2))


def _container(body: Body, holder: Part, points: Floats) -> list[str]:
    disc = holder.shape == "cylinder"
    x, y, z = holder.offset
    half = (holder.size[0], holder.size[0]) if disc else holder.size[:2]
    top = z + (holder.size[1] if disc else holder.size[2])
    height = min(body.height, top + 0.05)
    foot = points[points[:, 2] < 0.002 + 0.02 * body.height]
    shapes = [_slice(np.concatenate([foot, [[x - half[0], y - half[1], 0], [x + half[0], y + half[1], 0]]]), 0.0, top)]
    if not disc:
        for sx, sy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            size = (THIN if sx else half[0], THIN if sy else half[1], (height - top) / 2)
            shapes.append(_box(size, (x + sx * (half[0] + THIN), y + sy * (half[1] + THIN), (height + top) / 2)))
        return shapes
    width = math.tan(math.pi / WALLS) * half[0]
    for angle in np.linspace(0, 2 * math.pi, WALLS, endpoint=False).tolist():
        reach = half[0] + THIN
        place = (x + reach * math.cos(angle), y + reach * math.sin(angle), (height + top) / 2)
        shapes.append(_box((THIN, width, (height - top) / 2), place, angle))
    return shapes


def _box(half: Sequence[float], center: Sequence[float], yaw: float = 0.0) -> str:
    size, place = (" ".join(f"{value:.6f}" for value in values) for values in (half, center))
    return f'<geom type="box" size="{size}" pos="{place}" euler="0 0 {yaw:.6f}"/>'
