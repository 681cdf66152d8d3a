"""Training samples of the experiment whose reasoning is written in another way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trace_vlm.core.reasoning import parse, render
from trace_vlm.data.scenes.questions.view import deepest_point
from trace_vlm.data.scenes.wording import relation_phrase


def without(sample: dict[str, Any], key: str) -> dict[str, Any]:
    """A sample whose reasoning lacks one step."""
    question, answer = sample["conversations"]
    response = parse(answer["value"])
    text = render({step.key: step.text for step in response.steps if step.key != key}, response.points, 2)
    return {**sample, "conversations": [question, {**answer, "value": text}]}


def _with_target(sample: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A sample whose second step is changed."""
    question, answer = sample["conversations"]
    response = parse(answer["value"])
    steps = {step.key: step.text for step in response.steps}
    text = render(steps | {"target": change(steps["target"])}, response.points, 2)
    return {**sample, "conversations": [question, {**answer, "value": text}]}


def area_placed(sample: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A sample of free space whose second step also says where the middle of the area is."""
    if sample["meta"]["task"] != "free_space":
        return sample
    x, y = deepest_point(np.array(Image.open(folder / sample["meta"]["mask"])) > 0)
    return _with_target(sample, lambda target: f"{target} Its middle is at ({x:.2f}, {y:.2f}).")


def comparing(sample: dict[str, Any], view: dict[str, Any]) -> dict[str, Any]:
    """A sample whose second step first says, for every object of the noun, where it lies from the reference."""
    meta = sample["meta"]
    if not meta["target"] or not meta["relation"]:
        return sample
    reference = meta["hops"][-2]["instance"] if len(meta["hops"]) > 1 else meta["references"][0]["instance"]
    objects = {item["instance"]: item for item in view["objects"]}
    matrix = np.array(view["camera"]["world_from_camera"])
    axes = [axis / np.hypot(*axis) for axis in (matrix[:2, 0], matrix[:2, 2])]  # to the right and away, on the ground
    said = []
    for item in sorted(objects.values(), key=lambda item: item["center"]):
        if item["category"] == meta["target"]["category"] and item["instance"] != reference:
            offset = np.subtract(item["position"][:2], objects[reference]["position"][:2])
            right, away = (float(offset @ axis) for axis in axes)
            lies = ("right" if right > 0 else "left") if abs(right) > abs(away) else "behind" if away > 0 else "front"
            lies = meta["relation"] if item["instance"] == meta["target"]["instance"] else lies
            x, y = item["center"]
            verb = f"lies {relation_phrase(lies)}" if lies != meta["relation"] or item["instance"] == meta["target"][
                "instance"] else f"does not lie {relation_phrase(lies)}"  # fmt: skip
            said.append(f"The {item['category']} at ({x:.2f}, {y:.2f}) {verb} it.")
    return _with_target(sample, lambda target: " ".join([*said, target]))
