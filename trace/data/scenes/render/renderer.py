"""MuJoCo's renderer without its wrapper: one GL context for pictures of several sizes, depth with the segmentation.

`mujoco.Renderer` has one size a context and renders depth and segmentation in two passes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..gl import mujoco

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Segments = NDArray[np.uint8] | NDArray[np.uint16]

MAX_GEOMS = 2000


class Painter:
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
