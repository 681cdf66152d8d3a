"""The writers that need no network: the rules, in the plain or the full wording, and files of people or other tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.records import Sample
from . import rules, rules_wording
from .checks import Rules, check
from .file import Written
from .instruction_parser import facts_of
from .tasks import Task, task_of, with_steps


@dataclass(frozen=True, slots=True)
class Writers:
    """Give a task's steps, checked; ValueError says why they cannot be given."""

    rules: Rules
    decimals: int
    seed: int
    wording: str  # "plain" or "full", for samples whose `meta` names none

    def by_rules(self, task: Task) -> Mapping[str, str]:
        """Drawn from the seed and the sample's id, so that the wording does not depend on the order of the file."""
        sample = task.sample
        rng = np.random.default_rng([self.seed, *sample.id.encode()])
        wording = sample.meta.get("wording", self.wording)
        if wording == "plain":
            steps = rules.reason(sample, rng, self.rules.coordinates, self.decimals)
        else:
            steps = rules_wording.reason(task.facts or facts_of(sample), rng, self.rules.coordinates, self.decimals)
        check(steps, task.instruction, task.facts, self.rules)
        return steps

    def from_file(self, written: Written, task: Task) -> Mapping[str, str]:
        steps = written.steps(task.sample.id)
        check(steps, task.instruction, task.facts, self.rules)
        return steps


def with_reasoning(sample: Sample, seed: int, coordinates: bool, decimals: int, wording: str = "full") -> Sample:
    """The sample with reasoning by the rules before its answer and the request for it in its question.

    Raises:
        ValueError: what is known of it does not carry what the sentences state, or the answer holds no points.
    """
    task = task_of(sample)
    writers = Writers(Rules(coordinates), decimals, seed, wording)
    return with_steps(task, writers.by_rules(task), decimals)
