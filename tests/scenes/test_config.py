"""The scene configuration and the flags of the commands: what is refused, and which key or flag the error names."""

import json
import re
from pathlib import Path

import pytest

from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import QuestionsConfig, SceneConfig, as_dict, load_scene_config
from trace_vlm.utils.command import InputError

CONFIGS = Path(__file__).parents[2] / "configs" / "scenes"
MISTAKES = {  # the first key of an entry is the one to be named
    "questions": ("relatoinal: 2", "wording: poetic", "chain: {4: 1}", "direct: many", "direct: -1",
                  "free_relations: [on]", "part_relations: [middle]", "unseen: [under]", "num_points: 60",
                  "min_visible: 7}\nobjects: {max_objects: 6"),
    "camera": ("elevation: [30]", "elevation: 30", "elevation: [60, 40]", "roll: [10, -10]", "fovy: [30, 170]"),
    "objects": ("categories: [mug, sofa]", "categories: [mug, mug, can]", "colors: [blue]", "max_objects: 20",
                "max_objects: 4", "min_objects: 9, max_objects: 8", "min_objects: 2, min_categories: 3",
                "spacing: .nan", "region: 0.6"),
    "world": ("kind: garden", "surfaces: [table, bed]", "surfaces: [shelf]", "max_surfaces: 7", "stacked: 2"),
    "relations": ("next_to: 0.3", "cone: 80"),
}  # fmt: skip
ROWS = [(f"{name}: {{{entry}}}", f"{name}.{entry.split(':')[0]}") for name in MISTAKES for entry in MISTAKES[name]]


@pytest.mark.parametrize("text, key", [("colours: 3", "colours"), ("questions: 3", "questions"), *ROWS])
def test_mistakes_name_file_and_key(tmp_path, text, key):
    path = tmp_path / "scenes.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(key)) as caught:
        load_scene_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")))
def test_every_configuration_loads(path):
    config = load_scene_config(path)
    assert json.loads(json.dumps(as_dict(config))) == as_dict(config)
    assert path.read_text().startswith("#") and "python -m trace.data.scenes.generate" in path.read_text()


def test_defaults_are_the_tabletop_configuration(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert SceneConfig() == load_scene_config(tmp_path / "empty.yaml")
    assert load_scene_config(CONFIGS / "tabletop.yaml") == SceneConfig(questions=QuestionsConfig(absent=0.0))


@pytest.mark.parametrize(
    "flag", ["--size 128x", "--size 8", "--scenes 0", "--seed -1", "--shard 3/2", "--config n.yml"]
)
def test_bad_flags(tmp_path, flag):
    with pytest.raises(InputError, match=flag.split()[flag.startswith("--config")]):
        generate.main(["--out", str(tmp_path), *flag.split()])


def test_folder_of_another_program_is_not_touched(tmp_path):
    (tmp_path / "generate.json").write_text("[1]")
    with pytest.raises(InputError, match="generate.json"):
        generate.main(["--out", str(tmp_path)])
    assert (tmp_path / "generate.json").read_text() == "[1]"
