"""MuJoCo, imported after the settings that it and the GL library read only once."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "1")  # one thread a process: the workers are the parallelism

import mujoco

__all__ = ["mujoco"]
