"""The picture: one compiled MuJoCo model whose objects, materials, lights and camera are edited in place.

Compiling a model costs more than rendering one; here a new scene is a few array assignments. Every value a picture
depends on is set for every scene, so a picture depends on its scene alone and not on what was rendered before.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

# Both are read when the GL library is loaded. One thread a process: the workers are the parallelism.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "1")

import mujoco
import numpy as np
from numpy.typing import NDArray

from .camera import Camera
from .catalog import Body
from .relations import Table

Floats = NDArray[np.float64]

PARTS = 5  # primitives a slot; a cone has a mesh of its own besides
CONE_SIDES = 32
TEXTURES = ("plain", "grain", "speckle", "tiles", "cloud")
TEXTURE_SIZE = 128
FLOOR_DEPTH = 0.7
_SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
}
# Muted, so that no table or floor passes for the color of an object.
_SURFACES = (
    (0.72, 0.58, 0.42), (0.55, 0.40, 0.28), (0.88, 0.86, 0.82), (0.62, 0.62, 0.64), (0.36, 0.35, 0.36),
    (0.80, 0.74, 0.62), (0.60, 0.68, 0.72), (0.70, 0.67, 0.68), (0.56, 0.64, 0.56), (0.46, 0.42, 0.40),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Appearance:
    """What a scene looks like beyond its geometry."""

    table_rgb: tuple[float, ...]
    table_texture: int
    floor_rgb: tuple[float, ...]
    floor_texture: int
    key_position: tuple[float, ...]
    key: float
    fill_direction: tuple[float, ...]
    fill: float
    ambient: float
    tint: tuple[float, ...]
    shininess: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Appearance:
        table, floor = rng.choice(len(_SURFACES), 2, replace=False)
        angle, lean = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.2)
        fill = rng.uniform(0, 2 * math.pi)
        jitter = rng.uniform(-0.03, 0.03, (2, 3))
        return cls(
            table_rgb=tuple(np.clip(np.array(_SURFACES[table]) + jitter[0], 0, 1)),
            table_texture=int(rng.integers(len(TEXTURES))),
            floor_rgb=tuple(np.clip(0.8 * np.array(_SURFACES[floor]) + jitter[1], 0, 1)),
            floor_texture=int(rng.integers(len(TEXTURES))),
            key_position=(lean * math.cos(angle), lean * math.sin(angle), rng.uniform(1.6, 2.4)),
            key=rng.uniform(0.35, 0.6),
            fill_direction=(math.cos(fill), math.sin(fill), -1.2),
            fill=rng.uniform(0.05, 0.2),
            ambient=rng.uniform(0.25, 0.38),
            tint=tuple(1 + rng.uniform(-0.06, 0.06, 3)),
            shininess=rng.uniform(0.0, 0.5),
        )


class Studio:
    """Renders scenes of up to `slots` objects at `size` = (width, height). Close it, or use it as a context manager."""

    def __init__(self, slots: int, size: tuple[int, int]) -> None:
        self.slots = slots
        self.model = mujoco.MjModel.from_xml_string(_model_xml(slots, size))
        self.data = mujoco.MjData(self.model)
        self._paint_textures()
        self._cones = [_cone_arrays(self.model, slot) for slot in range(slots)]
        # mj_forward fills what is never edited again (cameras and geoms of the world body are written directly below).
        mujoco.mj_forward(self.model, self.data)
        try:
            self.renderer = mujoco.Renderer(self.model, size[1], size[0])
        except mujoco.FatalError as error:
            raise RuntimeError(f"no OpenGL context: {error}") from error
        geoms_per_slot = PARTS + 1
        first = self.model.geom("object0_0").id
        self._first_geom = first
        # Segment ids: 0 floor, legs and background, 1 the table's top, 2.. the slots.
        self._labels = np.zeros(self.model.ngeom + 1, np.uint8)
        self._labels[self.model.geom("table").id] = 1
        for slot in range(slots):
            self._labels[first + slot * geoms_per_slot : first + (slot + 1) * geoms_per_slot] = 2 + slot

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.renderer.close()

    def arrange(self, bodies: Sequence[Body], table: Table, look: Appearance) -> None:
        """Put the scene's bodies, table and lights into the model."""
        model, data = self.model, self.data
        first, per_slot = self._first_geom, PARTS + 1
        model.geom_rgba[first : first + self.slots * per_slot] = 0
        model.mat_shininess[:] = look.shininess
        model.mat_specular[:] = 0.6 * look.shininess
        for slot, body in enumerate(bodies):
            self._place(body, first + slot * per_slot, slot)
        self._place_table(table)
        for name, texture, rgb in (
            ("table", look.table_texture, look.table_rgb),
            ("floor", look.floor_texture, look.floor_rgb),
        ):
            geom = model.geom(name).id
            model.geom_matid[geom] = model.material(TEXTURES[texture]).id
            model.geom_rgba[geom] = (*rgb, 1)
        tint = np.array(look.tint)
        model.vis.headlight.ambient[:] = look.ambient * tint
        model.vis.headlight.diffuse[:] = 0.25 * tint
        model.light_diffuse[0] = look.key * tint
        model.light_diffuse[1] = look.fill
        data.light_xpos[0] = look.key_position
        data.light_xdir[0] = -np.array(look.key_position) / np.linalg.norm(look.key_position)
        data.light_xdir[1] = np.array(look.fill_direction) / np.linalg.norm(look.fill_direction)

    def look(self, camera: Camera) -> None:
        """Put the camera into the model. MuJoCo's cameras look along -z with y up."""
        self.data.cam_xpos[0] = camera.position
        self.data.cam_xmat[0] = (camera.rotation * np.array([1.0, -1.0, -1.0])).ravel()
        self.model.cam_fovy[0] = math.degrees(camera.fovy)

    def segment(self) -> NDArray[np.uint8]:
        """[height, width]: 0 background, 1 table, 2 + slot for the bodies in the order of `arrange`."""
        self.renderer.enable_segmentation_rendering()
        self.renderer.update_scene(self.data, 0)
        ids = self.renderer.render()[..., 0]
        self.renderer.disable_segmentation_rendering()
        labels: NDArray[np.uint8] = self._labels[ids]  # -1 (nothing) reads the last entry, which is 0
        return labels

    def color(self) -> NDArray[np.uint8]:
        """[height, width, 3]"""
        self.renderer.update_scene(self.data, 0)
        image: NDArray[np.uint8] = self.renderer.render()
        return image

    def _place(self, body: Body, first: int, slot: int) -> None:
        model, data = self.model, self.data
        cos, sin = math.cos(body.yaw), math.sin(body.yaw)
        yaw = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        foot = np.array([*body.position, 0.0])
        geom = first
        for part in body.parts():
            if part.shape == "cone":
                index = first + PARTS
                self._scale_cone(slot, part.size)
            else:
                index, geom = geom, geom + 1
                model.geom_type[index] = _SHAPES[part.shape]
                model.geom_size[index] = part.size
            model.geom_rgba[index] = (*part.rgb, 1)
            data.geom_xpos[index] = foot + yaw @ np.array(part.offset)
            data.geom_xmat[index] = (yaw if part.axis == "z" else yaw @ _X_UP).ravel()

    def _place_table(self, table: Table) -> None:
        x, y = table.half
        model, data = self.model, self.data
        top = model.geom("table").id
        model.geom_size[top] = (x, y, 0.02)
        data.geom_xpos[top] = (0, 0, -0.02)
        for leg, (sx, sy) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
            data.geom_xpos[model.geom(f"leg{leg}").id] = (sx * (x - 0.04), sy * (y - 0.04), -FLOOR_DEPTH / 2 - 0.02)

    def _scale_cone(self, slot: int, size: tuple[float, float, float]) -> None:
        vertices, normals = self._cones[slot]
        scale = np.array(size)
        model, mesh = self.model, self.model.mesh(f"cone{slot}").id
        start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        model.mesh_vert[start : start + count] = vertices * scale
        start, count = model.mesh_normaladr[mesh], model.mesh_normalnum[mesh]
        scaled = normals / scale
        model.mesh_normal[start : start + count] = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
        self.renderer._gl_context.make_current()
        mujoco.mjr_uploadMesh(model, self.renderer._mjr_context, mesh)

    def _paint_textures(self) -> None:
        for name, pixels in _textures().items():
            texture = self.model.texture(name).id
            start = self.model.tex_adr[texture]
            data = np.repeat((255 * np.clip(pixels, 0, 1)).astype(np.uint8)[..., None], 3, -1).ravel()
            self.model.tex_data[start : start + data.size] = data


_X_UP = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # the z axis of a part to x


def _cone_arrays(model: mujoco.MjModel, slot: int) -> tuple[Floats, Floats]:
    """Vertices and normals of the unit cone in its own frame: the compiler moved them to the mesh's inertial frame."""
    mesh = model.mesh(f"cone{slot}").id
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[mesh])
    back = rotation.reshape(3, 3).T
    start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[start : start + count] @ back + model.mesh_pos[mesh]
    start, count = model.mesh_normaladr[mesh], model.mesh_normalnum[mesh]
    return vertices, model.mesh_normal[start : start + count] @ back


def _textures() -> dict[str, Floats]:
    """Grey patterns that the material's color tints; drawn once from a fixed seed, the same for every data set."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] / TEXTURE_SIZE
    waves = sum(
        np.sin(2 * math.pi * (k * x + m * y) + p)
        for k, m, p in zip(*rng.integers(-4, 5, (2, 8)), rng.uniform(0, 6, 8), strict=True)
    )
    return {
        "plain": np.ones_like(x),
        "grain": 0.9
        + 0.08 * np.sin(2 * math.pi * (14 * y + 0.3 * np.sin(2 * math.pi * x))) * (0.6 + 0.4 * np.cos(8 * x)),
        "speckle": 0.9 + 0.1 * rng.standard_normal(x.shape),
        "tiles": np.where(((x * 8 % 1) < 0.04) | ((y * 8 % 1) < 0.04), 0.78, 0.97),
        "cloud": 0.9 + 0.03 * np.asarray(waves),
    }


def _model_xml(slots: int, size: tuple[int, int]) -> str:
    angles = np.linspace(0, 2 * math.pi, CONE_SIDES, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(CONE_SIDES)], 1)
    # The compiler wants a solid; a cap of its own vertices keeps the base's edge sharp.
    vertices = " ".join(f"{v:.6f}" for v in np.concatenate([ring, [[0, 0, 1.0], [0, 0, 0]]]).ravel())
    faces = " ".join(
        f"{k} {(k + 1) % CONE_SIDES} {CONE_SIDES} {(k + 1) % CONE_SIDES} {k} {CONE_SIDES + 1}"
        for k in range(CONE_SIDES)
    )
    meshes = "".join(f'<mesh name="cone{slot}" vertex="{vertices}" face="{faces}"/>' for slot in range(slots))
    textures = "".join(
        f'<texture name="{name}" type="2d" builtin="flat" rgb1="1 1 1" width="{TEXTURE_SIZE}" height="{TEXTURE_SIZE}"/>'
        f'<material name="{name}" texture="{name}" texrepeat="2 2" texuniform="true"/>'
        for name in TEXTURES
    )
    objects = "".join(
        "".join(f'<geom name="object{slot}_{part}" size="0.01 0.01 0.01" material="object"/>' for part in range(PARTS))
        + f'<geom name="object{slot}_{PARTS}" type="mesh" mesh="cone{slot}" material="object"/>'
        for slot in range(slots)
    )
    legs = "".join(
        f'<geom name="leg{k}" type="box" size=".025 .025 {FLOOR_DEPTH / 2 - 0.02}" rgba=".3 .28 .26 1"/>'
        for k in range(4)
    )
    return f"""<mujoco><compiler angle="radian"/><statistic extent="1.5" center="0 0 0"/>
    <visual><quality shadowsize="1024" offsamples="4"/><global offwidth="{size[0]}" offheight="{size[1]}"/>
    <map znear="0.1" zfar="20"/><headlight specular="0 0 0"/></visual>
    <asset>{textures}<material name="object"/>{meshes}</asset>
    <worldbody><camera name="camera"/>
    <light type="directional" castshadow="true" specular=".3 .3 .3"/>
    <light type="directional" castshadow="false" specular="0 0 0"/>
    <geom name="floor" type="box" size="12 12 .2" pos="0 0 {-FLOOR_DEPTH - 0.2}"/>
    <geom name="table" type="box" size=".5 .5 .02"/>{legs}{objects}</worldbody></mujoco>"""
