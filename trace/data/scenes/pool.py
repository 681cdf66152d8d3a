"""Scenes on several processes: each worker has its own GL context and renders whole scenes, the parent writes lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from ...utils.parallel import Pool, WorkerDied
from .render import SceneRenderer
from .scene import Job, make_scene


def run_scenes(
    job: Job, numbers: Sequence[int], workers: int, write: Callable[[dict[str, Any]], None], total: int
) -> dict[int, str]:
    """Make the scenes with these numbers and hand each one's line to `write`.

    Returns:
        The scenes that could not be made, because their worker process ended each time, with the reason.
    """
    failed: dict[int, str] = {}
    with (
        tqdm(total=total, initial=total - len(numbers), unit="scene", desc="scenes", mininterval=0.5) as bar,
        Pool(min(workers, max(1, len(numbers))), _renderer, job) as pool,
    ):
        for number, line in pool.in_order(numbers):
            try:
                write(line.result())
            except WorkerDied as error:
                failed[number] = str(error)
            bar.update()
    return failed


def _renderer(job: Job) -> Callable[[int], dict[str, Any]]:
    return partial(make_scene, job, renderer=SceneRenderer.from_config(job.config, job.sizes))
