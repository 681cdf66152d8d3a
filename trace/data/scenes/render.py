"""The picture: one compiled MuJoCo model whose objects, furniture, lights and camera are edited in place.

Compiling a model costs more than rendering one; here a new scene is a few array assignments. Every value a picture
depends on is set for every scene, so a picture depends on its scene alone and not on what was rendered before.
`mujoco.Renderer` is not used: it has one size a context and renders depth and segmentation in two passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.images import FIRST_OBJECT
from .config import SceneConfig
from .gl import mujoco
from .objects import Floats
from .objects.assets import load_assets
from .objects.catalog import CATEGORIES, Body
from .objects.primitives import BANDS, LATHE_FACES, lathe_arrays
from .world.camera import Camera
from .world.furniture import FINISHES, PLAIN_TEXTURES, ROOM_TEXTURES, TEXTURE_SIZE, draw_textures
from .world.surfaces import Room

Images = NDArray[np.uint8]

CONE_SIDES = 32
PLAIN_PARTS, PLAIN_BLOCKS = 5, 6  # what the flat world of one table and simple shapes needs
MAX_PARTS, MAX_LATHES, MAX_BLOCKS = 16, 3, 48
MAX_GEOMS = 2000  # of a rendered scene, decorations included
PRIMITIVES = ("box", "cylinder", "sphere", "capsule", "ellipsoid")
_SHAPES = {name: getattr(mujoco.mjtGeom, f"mjGEOM_{name.upper()}") for name in PRIMITIVES}


class SceneRenderer:
    """Renders scenes in pictures of these `sizes` (width, height). Use it in a `with`, or close it."""

    def __init__(self, config: SceneConfig, sizes: Sequence[tuple[int, int]]) -> None:
        self._size = (max(size[0] for size in sizes), max(size[1] for size in sizes))
        self.room = config.world.kind != "flat"
        self.slots, self.assets = config.objects.max_objects, load_assets(config.objects.assets)
        plain = all(CATEGORIES[name].build for name in config.objects.categories)
        # Geoms of a slot: primitives, then meshes: one cone, lathes, and one for the user's own meshes.
        self.parts, self.lathes = (PLAIN_PARTS, 0) if plain else (MAX_PARTS, MAX_LATHES)
        self.per_slot = self.parts + 1 + self.lathes + bool(self.assets)
        self.textures: tuple[str, ...] = ROOM_TEXTURES if self.room else PLAIN_TEXTURES
        self.blocks = MAX_BLOCKS if self.room else PLAIN_BLOCKS
        files = {f"asset{number}{asset.suffix}": asset.data for number, asset in enumerate(self.assets)}
        model = self.model = mujoco.MjModel.from_xml_string(self._model_xml(), files)
        self.data = mujoco.MjData(model)
        for name, pattern in draw_textures(self.textures).items():
            start = model.tex_adr[model.texture(name).id]
            pixels = np.repeat((255 * np.clip(pattern, 0, 1)).astype(np.uint8)[..., None], 3, -1).ravel()
            model.tex_data[start : start + pixels.size] = pixels
        self._cones = [self._unit_cone(model.mesh(f"cone{slot}").id) for slot in range(self.slots)]
        # mj_forward fills what is never edited again (cameras and geoms of the world body are written directly below).
        mujoco.mj_forward(model, self.data)
        try:
            self._gl = mujoco.GLContext(*self._size)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        except mujoco.FatalError as error:
            raise RuntimeError(f"no OpenGL context: {error}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene, self._option = mujoco.MjvScene(model, maxgeom=MAX_GEOMS), mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.fixedcamid, self._camera.type = 0, mujoco.mjtCamera.mjCAMERA_FIXED
        self._blocks, self._objects = model.geom("block0").id, model.geom("object0_0").id
        # By geom: the value in an instance map, and the number of the support whose level area it shows, from 1.
        self._labels, self._areas = np.zeros((2, model.ngeom + 1), np.uint8)

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def set_scene(self, bodies: Sequence[Body], room: Room) -> None:
        """Put the scene's bodies, furniture and lights into the model."""
        model, data, light = self.model, self.data, room.light
        model.geom_rgba[self._blocks :] = 0
        self._labels[:], self._areas[:] = 0, 0
        for index, block in enumerate(room.blocks, start=self._blocks):
            material = "glow" if block.glow else block.texture
            model.geom_size[index] = block.half
            model.geom_rgba[index] = (*block.rgb, 1)
            model.geom_matid[index] = model.material(material).id if material else -1
            data.geom_xpos[index] = block.center
            data.geom_xmat[index] = _about_z(block.yaw).ravel()
            if block.surface is not None:
                self._labels[index] = room.surfaces[block.surface].instance
                self._areas[index] = 1 + block.surface
        area = len(room.surfaces)
        for slot, body in enumerate(bodies):
            first = self._objects + slot * self.per_slot
            self._labels[first : first + self.per_slot] = FIRST_OBJECT + slot
            area = self._place_body(body, first, slot, area)
        if self.room:
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

    def set_camera(self, camera: Camera) -> None:
        """Put the camera into the model. MuJoCo's cameras look along -z with y up."""
        self.data.cam_xpos[0] = camera.position
        self.data.cam_xmat[0] = (camera.rotation * np.array([1.0, -1.0, -1.0])).ravel()
        self.model.cam_fovy[0] = math.degrees(camera.fovy)
        self._size = (camera.width, camera.height)

    def segment(self, depth: bool = False) -> tuple[Images, Images, Floats | None]:
        """Render [height, width] each: instances (see `instances.py`), areas, and depth in metres if wanted.

        Areas: the number, from 1, of the support whose level area a pixel may show, in the order of `supports_of`.
        """
        flags = self._scene.flags
        segment = [mujoco.mjtRndFlag.mjRND_SEGMENT.value, mujoco.mjtRndFlag.mjRND_IDCOLOR.value]
        buffer = np.empty(self._size[::-1], np.float32) if depth else None
        flags[segment] = True
        try:
            image = self._render(buffer)
        finally:
            flags[segment] = False
        segments: NDArray[Any] = image[..., 0]
        if self._scene.ngeom >= 256:
            segments = segments + (image[..., 1].astype(np.uint16) << 8)
        # Labels are looked up in the short list of rendered geoms, not for every pixel. Its first entry is nothing;
        # -1 reads the last label, which is 0.
        geoms = np.full(self._scene.ngeom + 1, -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid != -1:
                geoms[geom.segid + 1] = geom.objid
        metres: Floats | None = None
        if buffer is not None:  # its far end is 0; distances are along the camera's axis
            extent, planes = self.model.stat.extent, self.model.vis.map
            near, far = planes.znear * extent, planes.zfar * extent
            metres = near * far / (near + buffer[::-1].astype(np.float64) * (far - near))
        return self._labels[geoms][segments], self._areas[geoms][segments], metres

    def color(self) -> Images:
        """Render the picture [height, width, 3]."""
        return self._render(None)

    def _render(self, depth: NDArray[np.float32] | None) -> Images:
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self.model, self.data, self._option, None, self._camera, everything, self._scene)
        viewport = mujoco.MjrRect(0, 0, *self._size)
        image = np.empty((*self._size[::-1], 3), np.uint8)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(image, depth, viewport, self._context)
        return np.ascontiguousarray(image[::-1])

    def _place_body(self, body: Body, first: int, slot: int, area: int) -> int:
        """Write a body's parts into its slot; `area` and the result count the level areas before and with it."""
        model, data = self.model, self.data
        yaw, foot = _about_z(body.yaw), np.array([*body.position, body.z])
        geom, lathe = first, 0
        for part in body.parts:
            offset = np.array(part.offset)
            rotation = yaw @ part.rotation() if part.turn else yaw
            if part.shape == "cone":
                index = first + self.parts
                vertices, normals = self._cones[slot]
                normals = normals / np.array(part.size)
                normals /= np.linalg.norm(normals, axis=1, keepdims=True)
                self._write_mesh(f"cone{slot}", vertices * np.array(part.size), normals)
            elif part.shape == "lathe":
                index = first + self.parts + 1 + lathe
                self._write_mesh(f"lathe{slot}_{lathe}", *lathe_arrays(part.profile, part.size))
                lathe += 1
            elif part.shape == "mesh":
                index = first + self.per_slot - 1
                mesh = model.geom_dataid[index] = model.mesh(f"asset{body.asset}").id
                offset = offset + model.mesh_pos[mesh]  # the compiler moved the mesh to its middle and turned it
                rotation = yaw @ _matrix(model.mesh_quat[mesh])
            else:
                index, geom = geom, geom + 1
                model.geom_type[index] = _SHAPES[part.shape]
                model.geom_size[index] = part.size
            if part.role:
                area += part.role != "print"
                self._areas[index] = area
            model.geom_rgba[index] = (*part.rgb, 1)
            if self.room:
                model.geom_matid[index] = model.material(f"finish{body.finish}").id
            data.geom_xpos[index] = foot + yaw @ offset
            data.geom_xmat[index] = rotation.ravel()
        return area

    def _write_mesh(self, name: str, vertices: Floats, normals: Floats) -> None:
        model, mesh = self.model, self.model.mesh(name).id
        model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]] = vertices
        model.mesh_normal[model.mesh_normaladr[mesh] :][: model.mesh_normalnum[mesh]] = normals
        self._gl.make_current()
        mujoco.mjr_uploadMesh(model, self._context, mesh)

    def _unit_cone(self, mesh: int) -> tuple[Floats, Floats]:
        """Vertices and normals in the cone's own frame: the compiler moved them to the mesh's inertial frame."""
        model, back = self.model, _matrix(self.model.mesh_quat[mesh]).T
        vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]] @ back
        normals = model.mesh_normal[model.mesh_normaladr[mesh] :][: model.mesh_normalnum[mesh]] @ back
        return vertices + model.mesh_pos[mesh], normals

    def _model_xml(self) -> str:
        materials = [
            f'<texture name="{name}" type="2d" builtin="flat" rgb1="1 1 1" width="{TEXTURE_SIZE}" '
            f'height="{TEXTURE_SIZE}"/><material name="{name}" texture="{name}" texrepeat="2 2" texuniform="true"/>'
            for name in self.textures
        ]
        if self.room:
            materials.append('<material name="glow" emission="0.7"/>')
            for number, (texture, _) in enumerate(FINISHES):
                pattern = f' texture="{texture}" texrepeat="12 12" texuniform="true"' if texture != "plain" else ""
                materials.append(f'<material name="finish{number}"{pattern}/>')
        quality = ' numslices="20" numstacks="10" numquads="2"' if self.room else ""
        return f"""<mujoco><compiler angle="radian"/><statistic extent="1.5" center="0 0 0"/>
        <visual><quality shadowsize="1024" offsamples="4"{quality}/>
        <global offwidth="{self._size[0]}" offheight="{self._size[1]}"/>
        <map znear="0.1" zfar="20"/><headlight specular="0 0 0"/></visual>
        <asset>{"".join(materials)}<material name="object"/>{self._meshes_xml()}</asset>
        <worldbody><camera name="camera"/>
        <light type="directional" castshadow="true" specular=".3 .3 .3"/>
        <light type="directional" castshadow="false" specular="0 0 0"/>
        {self._geoms_xml()}</worldbody></mujoco>"""

    def _meshes_xml(self) -> str:
        angles = np.linspace(0, 2 * math.pi, CONE_SIDES, endpoint=False)
        rim = np.stack([np.cos(angles), np.sin(angles), np.zeros(CONE_SIDES)], 1)
        # The compiler requires a solid; a cap with its own vertices keeps the base's edge sharp.
        cone = _numbers(np.concatenate([rim, [[0, 0, 1.0], [0, 0, 0]]]))
        side = np.arange(CONE_SIDES)
        after, tip, base = (side + 1) % CONE_SIDES, side * 0 + CONE_SIDES, side * 0 + CONE_SIDES + 1
        sides = " ".join(str(vertex) for vertex in np.stack([side, after, tip, after, side, base], 1).ravel())
        cylinder = tuple((1.0, height) for height in np.linspace(0, 1, BANDS + 1).tolist())
        lathe = _numbers(lathe_arrays(cylinder, (1.0, 1.0, 1.0))[0])
        bands = " ".join(str(vertex) for vertex in LATHE_FACES.ravel())
        meshes = [f'<mesh name="cone{slot}" vertex="{cone}" face="{sides}"/>' for slot in range(self.slots)]
        names = [f"lathe{slot}_{number}" for slot in range(self.slots) for number in range(self.lathes)]
        meshes += [f'<mesh name="{name}" inertia="shell" vertex="{lathe}" face="{bands}"/>' for name in names]
        meshes += [
            f'<mesh name="asset{number}" inertia="shell" file="asset{number}{asset.suffix}" '
            f'scale="{asset.scale} {asset.scale} {asset.scale}"/>'
            for number, asset in enumerate(self.assets)
        ]
        return "".join(meshes)

    def _geoms_xml(self) -> str:
        geoms = [f'<geom name="block{number}" type="box" size=".1 .1 .1"/>' for number in range(self.blocks)]
        for slot in range(self.slots):
            meshes = [f"cone{slot}", *(f"lathe{slot}_{number}" for number in range(self.lathes))]
            shapes = ['size="0.01 0.01 0.01"'] * self.parts
            shapes += [f'type="mesh" mesh="{mesh}"' for mesh in meshes + ["asset0"] * bool(self.assets)]
            geoms += [f'<geom name="object{slot}_{k}" {shape} material="object"/>' for k, shape in enumerate(shapes)]
        return "".join(geoms)


def _about_z(angle: float) -> Floats:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _matrix(quaternion: Floats) -> Floats:
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, quaternion)
    return rotation.reshape(3, 3)


def _numbers(vertices: Floats) -> str:
    return " ".join(f"{value:.6f}" for value in vertices.ravel())
