"""MuJoCo, imported after the settings that it and the GL library read only once."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")
# Mesa's software renderer without threads of its own. With one, Mesa 22.3 now and then uses a fence after it is freed
# (once in 23,000 scenes where it was looked for): the process then crashes inside malloc, or waits for ever
# (docs/experiments.md). The workers are the parallelism, so nothing is slower.
os.environ.setdefault("LP_NUM_THREADS", "0")

import mujoco

__all__ = ["mujoco"]
