"""Whether a scene is stable: MuJoCo's physics on simple collision shapes.

Every object falls freely for a moment. What stays upright where it was put is stable, and keeps the position to which
the physics moved it; its last fraction of a degree of tilt, which comes from soft contacts, is removed. A scene of
which an object falls over, slides or falls off is rejected with that reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config import WorldConfig
from ..gl import mujoco
from ..objects import Floats
from ..objects.catalog import Body
from ..objects.primitives import Part, outline
from .surfaces import Reject, Room, supports_of

STEP = 0.004  # seconds
LIFT = 0.0005  # metres above the support at the start
FALLEN = 0.02  # metres below the support: it has fallen off
WALLS = 10  # boxes that make the wall of a round container
ROUND = 0.75  # half side of the box that stands for something round, as a fraction of its radius
THIN = 0.004  # half thickness of such a box at the least


def settle(bodies: Sequence[Body], room: Room, config: WorldConfig) -> list[Body]:
    """Return the bodies where they come to rest. Reject if one does not stay where it was put."""
    furniture = "".join(_box(block.half, block.center, block.yaw) for block in room.blocks if block.solid)
    objects = "".join(
        f'<body pos="{body.position[0]:.6f} {body.position[1]:.6f} {body.z + LIFT:.6f}" euler="0 0 {body.yaw:.6f}">'
        f"<freejoint/>{''.join(_collision_boxes(body))}</body>"
        for body in bodies
    )
    model = mujoco.MjModel.from_xml_string(
        f"""<mujoco><compiler angle="radian"/><option timestep="{STEP}" integrator="implicitfast" iterations="20"
        ls_iterations="10"/><default><geom friction="1 0.02 0.002" condim="4" density="300" solref="0.01 1"/></default>
        <worldbody>{furniture}{objects}</worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, round(config.settle / STEP))
    supports = supports_of(bodies, room.surfaces)
    settled = []
    for body, state in zip(bodies, data.qpos.reshape(-1, 7), strict=True):
        if not np.isfinite(state[:3]).all():
            raise Reject("the physics became unstable")
        px, py, pz, w, x, y, z = state.tolist()
        if pz < supports[body.support].center[2] - FALLEN:
            raise Reject("an object falls off its support")
        if math.degrees(math.acos(min(1.0, max(-1.0, 1 - 2 * (x * x + y * y))))) > config.max_tilt:
            raise Reject("an object falls over")
        if math.dist((px, py), body.position) > config.max_shift:
            raise Reject("an object slides or rolls away")
        yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        settled.append(replace(body, position=(px, py), yaw=yaw))
    for number, body in enumerate(settled):  # heights follow from what carries what
        support = supports_of(settled, room.surfaces)[body.support]
        if support.inset(np.array(body.position)) < 0:
            raise Reject("an object slides or rolls away")
        settled[number] = replace(body, z=support.center[2])
    return settled


def _collision_boxes(body: Body) -> list[str]:
    """The boxes that stand for a body: its foot's slice and its bulk above; for containers floor and wall."""
    if body.asset is not None:
        half = body.half or (body.radius, body.radius)
        return [_box((half[0], half[1], body.height / 2), (0, 0, body.height / 2))]
    points = np.concatenate([outline(part) for part in body.parts])
    interior = next((part for part in body.parts if part.role == "interior"), None)
    if interior is not None:
        return _container(body, interior, points)
    foot = points[points[:, 2] < 0.06 * body.height + 0.001]
    fraction = ROUND if body.half is None else 1.0
    border = body.height * 0.1
    return [_slice(foot, 0.0, border, fraction), _slice(points, border, body.height, fraction)]


def _container(body: Body, interior: Part, points: Floats) -> list[str]:
    disc = interior.shape == "cylinder"
    x, y, z = interior.offset
    half = (interior.size[0], interior.size[0] if disc else interior.size[1])
    top = z + interior.size[1 if disc else 2]
    height = min(body.height, top + 0.05)
    middle, half_height = (height + top) / 2, (height - top) / 2
    foot = points[points[:, 2] < 0.002 + 0.02 * body.height]
    floor = np.concatenate([foot, [[x - half[0], y - half[1], 0], [x + half[0], y + half[1], 0]]])
    boxes = [_slice(floor, 0.0, top)]
    if not disc:
        for sx, sy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            size = (THIN if sx else half[0], THIN if sy else half[1], half_height)
            boxes.append(_box(size, (x + sx * (half[0] + THIN), y + sy * (half[1] + THIN), middle)))
        return boxes
    width, reach = math.tan(math.pi / WALLS) * half[0], half[0] + THIN
    for angle in np.linspace(0, 2 * math.pi, WALLS, endpoint=False).tolist():
        center = (x + reach * math.cos(angle), y + reach * math.sin(angle), middle)
        boxes.append(_box((THIN, width, half_height), center, angle))
    return boxes


def _slice(points: Floats, low: float, high: float, fraction: float = 1.0) -> str:
    """A box around the points between two heights, or around this fraction of their width."""
    least, most = points[:, :2].min(0), points[:, :2].max(0)
    center, half = (least + most) / 2, np.maximum(fraction * (most - least) / 2, THIN)
    return _box((half[0], half[1], (high - low) / 2), (center[0], center[1], (low + high) / 2))


def _box(half: Sequence[float], center: Sequence[float], yaw: float = 0.0) -> str:
    size, pos = (" ".join(f"{value:.6f}" for value in values) for values in (half, center))
    return f'<geom type="box" size="{size}" pos="{pos}" euler="0 0 {yaw:.6f}"/>'
