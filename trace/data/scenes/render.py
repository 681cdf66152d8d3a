"""The picture: one compiled MuJoCo model whose objects, furniture, lights and camera are edited in place.

Compiling a model costs more than rendering one; here a new scene is a few array assignments. Every value a picture
depends on is set for every scene, so a picture depends on its scene alone and not on what was rendered before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import SceneConfig
from .gl import mujoco
from .instances import FIRST_OBJECT
from .objects.assets import Asset, load_assets
from .objects.catalog import CATEGORIES, Body
from .objects.lathe import LATHE_FACES, lathe_arrays, unit_lathe
from .objects.primitives import X_UP, Part
from .world.camera import Camera
from .world.furniture import FINISHES
from .world.surfaces import Block, Room
from .world.textures import PLAIN_TEXTURES, ROOM_TEXTURES, TEXTURE_SIZE, draw_textures

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Segments = NDArray[np.uint8] | NDArray[np.uint16]

MAX_GEOMS = 2000

CONE_SIDES = 32
PLAIN_PARTS, PLAIN_BLOCKS = 5, 6  # what the flat world of one table and simple shapes needs
MAX_PARTS, MAX_LATHES, MAX_BLOCKS = 16, 3, 48
FLOOR_DEPTH = 0.7
_SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
}


@dataclass(frozen=True, slots=True)
class SceneCapacity:
    """What a model must have room for."""

    slots: int
    parts: int  # primitives of a slot; a cone and lathes have meshes of their own besides
    lathes: int
    blocks: int
    textures: tuple[str, ...]
    room: bool
    assets: tuple[Asset, ...]

    @classmethod
    def of(cls, config: SceneConfig) -> SceneCapacity:
        slots, assets = config.objects.max_objects, load_assets(config.objects.assets)
        plain = all(CATEGORIES[name].build for name in config.objects.categories)
        parts, lathes = (PLAIN_PARTS, 0) if plain else (MAX_PARTS, MAX_LATHES)
        if config.world.kind == "flat":
            return cls(slots, parts, lathes, PLAIN_BLOCKS, PLAIN_TEXTURES, False, assets)
        return cls(slots, parts, lathes, MAX_BLOCKS, ROOM_TEXTURES, True, assets)

    @property
    def per_slot(self) -> int:
        return self.parts + 1 + self.lathes + (1 if self.assets else 0)


class OffscreenRenderer:
    """Renders the first camera of a model. RuntimeError or ImportError when there is no GL library."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        width, height = model.vis.global_.offwidth, model.vis.global_.offheight
        try:
            self._gl = mujoco.GLContext(width, height)
            self._gl.make_current()
            self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        except mujoco.FatalError as error:
            raise RuntimeError(f"no OpenGL context: {error}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self.context)
        self.context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.fixedcamid = 0
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def close(self) -> None:
        if self._gl is not None:
            self._gl.make_current()
            self.context.free()
            self._gl.free()
            self._gl = None

    def upload_mesh(self, mesh: int) -> None:
        """Hand the edited vertices of a mesh to the GL library."""
        self._gl.make_current()
        mujoco.mjr_uploadMesh(self._model, self.context, mesh)

    def color(self, data: mujoco.MjData, size: tuple[int, int]) -> NDArray[np.uint8]:
        """[height, width, 3]"""
        return self._render(data, size, None)

    def geoms(self, data: mujoco.MjData, size: tuple[int, int], depth: bool) -> tuple[Segments, Ints, Floats | None]:
        """What every pixel [height, width] shows, as a place in the list of geoms that follows, and depth in metres.

        The list says the number of the geom in the model, -1 for the first: nothing. It is short, so that whoever
        wants something else of the geoms than their numbers looks that up in the list and not for every pixel.
        """
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        buffer = np.empty((size[1], size[0]), np.float32) if depth else None
        try:
            image = self._render(data, size, buffer)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        segments: Segments = image[..., 0]
        if self._scene.ngeom >= 256:
            segments = segments + (image[..., 1].astype(np.uint16) << 8)
        numbers = np.full(self._scene.ngeom + 1, -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid != -1:
                numbers[geom.segid + 1] = geom.objid
        return segments, numbers, None if buffer is None else self._metres(buffer)

    def _render(
        self, data: mujoco.MjData, size: tuple[int, int], depth: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)
        rectangle = mujoco.MjrRect(0, 0, *size)
        image = np.empty((size[1], size[0], 3), np.uint8)
        mujoco.mjr_render(rectangle, self._scene, self.context)
        mujoco.mjr_readPixels(image, depth, rectangle, self.context)
        return np.ascontiguousarray(image[::-1])

    def _metres(self, buffer: NDArray[np.float32]) -> Floats:
        """The depth buffer, whose far end is 0, as distances along the camera's axis."""
        extent = self._model.stat.extent
        near, far = self._model.vis.map.znear * extent, self._model.vis.map.zfar * extent
        result: Floats = near * far / (near + buffer[::-1].astype(np.float64) * (far - near))
        return result


class SceneRenderer:
    """Renders scenes of a `capacity` in pictures of up to `size` (width, height). Close it, or use it in a `with`."""

    def __init__(self, capacity: SceneCapacity, size: tuple[int, int]) -> None:
        self.capacity = capacity
        files = {f"asset{number}{asset.suffix}": asset.data for number, asset in enumerate(capacity.assets)}
        self.model = mujoco.MjModel.from_xml_string(_model_xml(capacity, size), files)
        self.data = mujoco.MjData(self.model)
        self._paint_textures()
        self._cones = [_cone_arrays(self.model, slot) for slot in range(capacity.slots)]
        # mj_forward fills what is never edited again (cameras and geoms of the world body are written directly below).
        mujoco.mj_forward(self.model, self.data)
        self._offscreen = OffscreenRenderer(self.model)
        self._blocks = self.model.geom("block0").id
        self._objects = self.model.geom("object0_0").id
        self._size = size
        # By geom: the value in an instance map, and the number of the support whose level area it shows, from 1.
        self._labels = np.zeros(self.model.ngeom + 1, np.uint8)
        self._areas = np.zeros(self.model.ngeom + 1, np.uint8)

    @classmethod
    def from_config(cls, config: SceneConfig, sizes: Sequence[tuple[int, int]]) -> SceneRenderer:
        return cls(SceneCapacity.of(config), (max(size[0] for size in sizes), max(size[1] for size in sizes)))

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._offscreen.close()

    def set_scene(self, bodies: Sequence[Body], room: Room) -> None:
        """Put the scene's bodies, furniture and lights into the model."""
        model, capacity = self.model, self.capacity
        model.geom_rgba[self._blocks :] = 0
        self._labels[:], self._areas[:] = 0, 0
        for number, block in enumerate(room.blocks):
            self._place_block(block, self._blocks + number, room)
        area = len(room.surfaces)
        for slot, body in enumerate(bodies):
            first = self._objects + slot * capacity.per_slot
            self._labels[first : first + capacity.per_slot] = FIRST_OBJECT + slot
            area = self._place_body(body, first, slot, area)
        self._set_light(room)

    def set_camera(self, camera: Camera) -> None:
        """Put the camera into the model. MuJoCo's cameras look along -z with y up."""
        self.data.cam_xpos[0] = camera.position
        self.data.cam_xmat[0] = (camera.rotation * np.array([1.0, -1.0, -1.0])).ravel()
        self.model.cam_fovy[0] = math.degrees(camera.fovy)
        self._size = (camera.width, camera.height)

    def segment(self, depth: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Floats | None]:
        """[height, width] each: instances (0 background, then surfaces and bodies), areas, depth in metres if wanted.

        Areas: the number, from 1, of the support whose level area a pixel may show: the room's surfaces, then the
        spots of the bodies in their order.
        """
        segments, numbers, metres = self._offscreen.geoms(self.data, self._size, depth)
        # -1 (nothing) reads the last entry, which is 0.
        return self._labels[numbers][segments], self._areas[numbers][segments], metres

    def color(self) -> NDArray[np.uint8]:
        """[height, width, 3]"""
        return self._offscreen.color(self.data, self._size)

    def _place_block(self, block: Block, index: int, room: Room) -> None:
        model, data = self.model, self.data
        model.geom_type[index] = _SHAPES[block.shape]
        model.geom_size[index] = block.half
        model.geom_rgba[index] = (*block.rgb, 1)
        material = "glow" if block.glow else block.texture
        model.geom_matid[index] = model.material(material).id if material else -1
        data.geom_xpos[index] = block.center
        data.geom_xmat[index] = _about_z(block.yaw).ravel()
        if block.surface is not None:
            self._labels[index] = room.surfaces[block.surface].instance
            self._areas[index] = 1 + block.surface

    def _place_body(self, body: Body, first: int, slot: int, area: int) -> int:
        model, data = self.model, self.data
        yaw = _about_z(body.yaw)
        foot = np.array([*body.position, body.z])
        geom, lathe = first, 0
        for part in body.parts:
            if part.shape == "cone":
                index = first + self.capacity.parts
                self._scale_cone(slot, part.size)
            elif part.shape == "lathe":
                index = first + self.capacity.parts + 1 + lathe
                self._turn_lathe(slot, lathe, part)
                lathe += 1
            elif part.shape == "mesh":
                index = first + self.capacity.per_slot - 1
                model.geom_dataid[index] = model.mesh(f"asset{body.asset}").id
            else:
                index, geom = geom, geom + 1
                model.geom_type[index] = _SHAPES[part.shape]
                model.geom_size[index] = part.size
            if part.role:
                area += part.role != "print"
                self._areas[index] = area
            model.geom_rgba[index] = (*part.rgb, 1)
            if self.capacity.room:
                model.geom_matid[index] = model.material(f"finish{body.finish}").id
            offset = np.array(part.offset)
            if part.shape == "mesh":  # the compiler moved the mesh to its middle
                offset = offset + model.mesh_pos[model.geom_dataid[index]]
            data.geom_xpos[index] = foot + yaw @ offset
            data.geom_xmat[index] = self._rotation(part, yaw, index).ravel()
        return area

    def _rotation(self, part: Part, yaw: Floats, index: int) -> Floats:
        if part.shape == "mesh":
            return yaw @ self._asset_frame(index)
        if part.turn:
            return yaw @ part.rotation()
        return yaw if part.axis == "z" else yaw @ X_UP

    def _set_light(self, room: Room) -> None:
        model, data, light = self.model, self.data, room.light
        if self.capacity.room:
            for number, (_, shine) in enumerate(FINISHES):
                material = model.material(f"finish{number}").id
                model.mat_shininess[material], model.mat_specular[material] = shine, 0.6 * shine
        else:
            model.mat_shininess[:] = light.shininess
            model.mat_specular[:] = 0.6 * light.shininess
        tint = np.array(light.tint)
        model.vis.headlight.ambient[:] = light.ambient * tint
        model.vis.headlight.diffuse[:] = 0.25 * tint
        model.light_diffuse[0] = light.key * tint
        model.light_diffuse[1] = light.fill
        data.light_xpos[0] = light.key_position
        data.light_xdir[0] = -np.array(light.key_position) / np.linalg.norm(light.key_position)
        data.light_xdir[1] = np.array(light.fill_direction) / np.linalg.norm(light.fill_direction)

    def _scale_cone(self, slot: int, size: tuple[float, float, float]) -> None:
        vertices, normals = self._cones[slot]
        scale = np.array(size)
        scaled = normals / scale
        self._write_mesh(f"cone{slot}", vertices * scale, scaled / np.linalg.norm(scaled, axis=1, keepdims=True))

    def _turn_lathe(self, slot: int, number: int, part: Part) -> None:
        self._write_mesh(f"lathe{slot}_{number}", *lathe_arrays(part.profile, part.size))

    def _write_mesh(self, name: str, vertices: Floats, normals: Floats) -> None:
        model, mesh = self.model, self.model.mesh(name).id
        start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        model.mesh_vert[start : start + count] = vertices
        start, count = model.mesh_normaladr[mesh], model.mesh_normalnum[mesh]
        model.mesh_normal[start : start + count] = normals
        self._offscreen.upload_mesh(mesh)

    def _asset_frame(self, index: int) -> Floats:
        """The rotation into which the compiler turned a mesh."""
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, self.model.mesh_quat[self.model.geom_dataid[index]])
        return rotation.reshape(3, 3)

    def _paint_textures(self) -> None:
        for name, pixels in draw_textures(self.capacity.textures).items():
            texture = self.model.texture(name).id
            start = self.model.tex_adr[texture]
            data = np.repeat((255 * np.clip(pixels, 0, 1)).astype(np.uint8)[..., None], 3, -1).ravel()
            self.model.tex_data[start : start + data.size] = data


def _about_z(angle: float) -> Floats:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


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


def _model_xml(capacity: SceneCapacity, size: tuple[int, int]) -> str:
    textures = "".join(
        f'<texture name="{name}" type="2d" builtin="flat" rgb1="1 1 1" width="{TEXTURE_SIZE}" height="{TEXTURE_SIZE}"/>'
        f'<material name="{name}" texture="{name}" texrepeat="2 2" texuniform="true"/>'
        for name in capacity.textures
    )
    if capacity.room:
        textures += '<material name="glow" emission="0.7"/>' + "".join(
            f'<material name="finish{number}"'
            + ("" if texture == "plain" else f' texture="{texture}" texrepeat="12 12" texuniform="true"')
            + "/>"
            for number, (texture, _) in enumerate(FINISHES)
        )
    quality = ' numslices="20" numstacks="10" numquads="2"' if capacity.room else ""
    tail = '<material name="object"/>' + _meshes_xml(capacity)
    return f"""<mujoco><compiler angle="radian"/><statistic extent="1.5" center="0 0 0"/>
    <visual><quality shadowsize="1024" offsamples="4"{quality}/>
    <global offwidth="{size[0]}" offheight="{size[1]}"/>
    <map znear="0.1" zfar="20"/><headlight specular="0 0 0"/></visual>
    <asset>{textures}{tail}</asset>
    <worldbody><camera name="camera"/>
    <light type="directional" castshadow="true" specular=".3 .3 .3"/>
    <light type="directional" castshadow="false" specular="0 0 0"/>
    {_geoms_xml(capacity)}</worldbody></mujoco>"""


def _meshes_xml(capacity: SceneCapacity) -> str:
    angles = np.linspace(0, 2 * math.pi, CONE_SIDES, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(CONE_SIDES)], 1)
    # The compiler wants a solid; a cap of its own vertices keeps the base's edge sharp.
    vertices = " ".join(f"{v:.6f}" for v in np.concatenate([circle, [[0, 0, 1.0], [0, 0, 0]]]).ravel())
    faces = " ".join(
        f"{k} {(k + 1) % CONE_SIDES} {CONE_SIDES} {(k + 1) % CONE_SIDES} {k} {CONE_SIDES + 1}"
        for k in range(CONE_SIDES)
    )
    meshes = [f'<mesh name="cone{slot}" vertex="{vertices}" face="{faces}"/>' for slot in range(capacity.slots)]
    if capacity.lathes:
        lathe = " ".join(f"{v:.6f}" for v in unit_lathe().ravel())
        turned = " ".join(str(v) for v in LATHE_FACES.ravel())
        meshes += [
            f'<mesh name="lathe{slot}_{number}" inertia="shell" vertex="{lathe}" face="{turned}"/>'
            for slot in range(capacity.slots)
            for number in range(capacity.lathes)
        ]
    meshes += [
        f'<mesh name="asset{number}" inertia="shell" file="asset{number}{asset.suffix}" '
        f'scale="{asset.scale} {asset.scale} {asset.scale}"/>'
        for number, asset in enumerate(capacity.assets)
    ]
    return "".join(meshes)


def _geoms_xml(capacity: SceneCapacity) -> str:
    blocks = "".join(f'<geom name="block{number}" type="box" size=".1 .1 .1"/>' for number in range(capacity.blocks))
    objects = []
    for slot in range(capacity.slots):
        objects += [
            f'<geom name="object{slot}_{part}" size="0.01 0.01 0.01" material="object"/>'
            for part in range(capacity.parts)
        ]
        meshes = [f"cone{slot}", *(f"lathe{slot}_{number}" for number in range(capacity.lathes))]
        meshes += ["asset0"] if capacity.assets else []
        objects += [
            f'<geom name="object{slot}_{capacity.parts + number}" type="mesh" mesh="{mesh}" material="object"/>'
            for number, mesh in enumerate(meshes)
        ]
    return blocks + "".join(objects)
