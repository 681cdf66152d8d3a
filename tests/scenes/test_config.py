"""The scene configuration and the flags of the commands: what is refused, and which key or flag the error names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import SceneConfig, as_dict, load_scene_config
from trace_vlm.utils.command import InputError

CONFIGS = Path(__file__).parents[2] / "configs" / "scenes"


@pytest.mark.parametrize(
    "text, key",
    [
        ("questions:\n  relatoinal: 2\n", "questions.relatoinal"),
        ("colours: 3\n", "colours"),
        ("questions: 3\n", "questions"),
        ("questions:\n  direct: many\n", "questions.direct"),
        ("questions:\n  direct: -1\n", "questions.direct"),
        ("questions:\n  free_relations: [on]\n", "questions.free_relations"),
        ("questions:\n  part_relations: [middle]\n", "questions.part_relations"),
        ("questions:\n  unseen: [under]\n", "questions.unseen"),
        ("questions:\n  num_points: 60\n", "questions.num_points"),
        ("questions:\n  wording: poetic\n", "questions.wording"),
        ("camera:\n  elevation: [30]\n", "camera.elevation"),
        ("camera:\n  elevation: 30\n", "camera.elevation"),
        ("camera:\n  elevation: [60, 40]\n", "camera.elevation"),
        ("camera:\n  roll: [10, -10]\n", "camera.roll"),
        ("camera:\n  fovy: [30, 170]\n", "camera.fovy"),
        ("objects:\n  categories: [mug, sofa]\n", "objects.categories"),
        ("objects:\n  categories: [mug, mug, can]\n", "objects.categories"),
        ("objects:\n  colors: [blue]\n", "objects.colors"),
        ("objects:\n  max_objects: 20\n", "objects.max_objects"),
        ("objects:\n  min_objects: 9\n  max_objects: 8\n", "objects.min_objects"),
        ("objects:\n  min_objects: 2\n  min_categories: 3\n", "objects.min_objects"),
        ("objects:\n  max_objects: 6\nquestions:\n  min_visible: 7\n", "questions.min_visible"),
        ("objects:\n  region: 0.6\n", "objects.region"),
        ("objects:\n  spacing: .nan\n", "objects.spacing"),
        ("world:\n  kind: garden\n", "world.kind"),
        ("world:\n  surfaces: [table, bed]\n", "world.surfaces"),
        ("world:\n  surfaces: [shelf]\n", "world.surfaces"),
        ("world:\n  max_surfaces: 7\n", "world.max_surfaces"),
        ("world:\n  stacked: 2\n", "world.stacked"),
        ("relations:\n  next_to: 0.3\n", "relations.next_to"),
        ("relations:\n  cone: 80\n", "relations.cone"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "scenes.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(key)) as caught:
        load_scene_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")))
def test_every_configuration_loads(path: Path) -> None:
    config = load_scene_config(path)
    assert json.loads(json.dumps(as_dict(config))) == as_dict(config)
    assert path.read_text().startswith("#") and "python -m trace.data.scenes.generate" in path.read_text()


def test_defaults_are_the_tabletop_configuration(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load_scene_config(CONFIGS / "tabletop.yaml") == SceneConfig() == load_scene_config(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    "flag, value",
    [("--size", "128x"), ("--size", "8"), ("--scenes", "0"), ("--seed", "-1"), ("--shard", "3/2"),
     ("--config", "nowhere.yaml")],
)  # fmt: skip
def test_bad_flags(tmp_path: Path, flag: str, value: str) -> None:
    with pytest.raises(InputError, match=value if flag == "--config" else flag):
        generate.main(["--out", str(tmp_path), flag, value])


def test_folder_of_another_program_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "generate.json").write_text("[1]")
    with pytest.raises(InputError, match="generate.json"):
        generate.main(["--out", str(tmp_path)])
    assert (tmp_path / "generate.json").read_text() == "[1]"
