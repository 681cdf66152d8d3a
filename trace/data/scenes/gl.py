"""MuJoCo, imported after the settings that it and the GL library read only once."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")
# Mesa's software renderer without its own threads. With one, Mesa 22.3 sometimes uses a fence after it is freed (once in
# 23,000 scenes): the process then crashes inside malloc, or hangs (docs/experiments/2026-11-29-worker-crash.md). The
# worker processes are the parallelism, so nothing is slower.
os.environ.setdefault("LP_NUM_THREADS", "0")

import mujoco as mujoco
