"""MuJoCo, imported after the settings that it and the GL library read only once."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")
# Mesa's software renderer works in the calling thread: the workers are the parallelism, and its own threads are one
# suspect less when a worker dies.
os.environ.setdefault("LP_NUM_THREADS", "0")

import mujoco

__all__ = ["mujoco"]
