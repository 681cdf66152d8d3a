"""The scene configuration: what is refused, with which words. And the small modules that need no rendering."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import SceneConfig, as_dict, load_scene_config
from trace_vlm.data.scenes.limits import LIMITS
from trace_vlm.data.scenes.questions.mask_sampling import bounding_box, center_on_mask, on_mask, sample_points
from trace_vlm.utils.command import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text, message",
    [
        ("questions:\n  relatoinal: 2\n", "unknown key questions.relatoinal"),
        ("colours: 3\n", "unknown key colours"),
        ("questions: 3\n", "questions"),
        ("questions:\n  direct: many\n", "questions.direct"),
        ("questions:\n  free_relations: [on]\n", "questions.free_relations"),
        ("camera:\n  elevation: [30]\n", "camera.elevation"),
        ("camera:\n  elevation: 30\n", "camera.elevation"),
        ("camera:\n  elevation: [60, 40]\n", "camera.elevation must be in ascending order, not [60.0, 40.0]"),
        ("objects:\n  categories: [mug, sofa]\n", "objects.categories has 'sofa'; known: box, ball"),
        ("questions:\n  unseen: [under]\n", "questions.unseen has 'under'; known: left, right"),
        ("objects:\n  region: 0.6\n", "objects.region must be smaller"),
        ("questions: [\n", "is not valid YAML"),
        ("world:\n  kind: garden\n", "world.kind"),
        ("world:\n  surfaces: [table, bed]\n", "world.surfaces has 'bed'; known: table, counter"),
        ("world:\n  surfaces: [shelf]\n", "world.surfaces needs a table or a counter"),
        ("world:\n  max_surfaces: 7\n", "world.max_surfaces must be within 1 to 3, not 7"),
        ("world:\n  stacked: 2\n", "world.stacked must be within 0 to 1, not 2"),
        ("camera:\n  roll: [10, -10]\n", "camera.roll must be in ascending order"),
        ("camera:\n  height: [2, 1]\n", "camera.height must be in ascending order"),
        ("camera:\n  fovy: [30, 170]\n", "camera.fovy must be within 5 to 100, not [30.0, 170.0]"),
        ("objects:\n  categories: [mug, mug, can]\n", "objects.categories names something twice"),
        ("objects:\n  colors: [blue]\n", "objects.colors has none of the colors of cake: white, pink"),
        ("objects:\n  max_objects: 20\n", "objects.max_objects must be within 1 to 12, not 20"),
        ("questions:\n  num_points: 60\n", "questions.num_points must be within 1 to 50, not 60"),
        ("questions:\n  wording: poetic\n", "questions.wording"),
        ("questions:\n  part_relations: [middle]\n", "questions.part_relations has 'middle'; known: left part"),
        ("objects:\n  spacing: .nan\n", "objects.spacing"),
        ("relations:\n  next_to: 0.3\n", "relations.next_to and next_to_far must be in ascending order, not 0.3, 0.16"),
        ("relations:\n  cone: 80\n", "relations.cone and ambiguity must stay below 85 degrees together"),
        ("objects:\n  min_objects: 9\n  max_objects: 8\n", "objects.min_objects and max_objects must be in ascending"),
        ("questions:\n  direct: -1\n", "questions.direct must be within 0 to 20, not -1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scenes.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_scene_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "scenes").glob("*.yaml")))
def test_every_configuration_loads(path: Path) -> None:
    config = load_scene_config(path)
    assert json.loads(json.dumps(as_dict(config))) == as_dict(config)
    assert path.read_text().startswith("#") and "python -m trace.data.scenes.generate" in path.read_text()


def test_every_number_has_limits() -> None:
    numbers = {
        f"{section}.{key}"
        for section, values in as_dict(SceneConfig()).items()
        for key, value in values.items()
        if isinstance(value[0] if isinstance(value, list) and value else value, (int, float))
        if not isinstance(value, bool)
    }
    assert numbers == set(LIMITS) and all(low < high for low, high in LIMITS.values())


def test_the_defaults_are_the_tabletop_configuration() -> None:
    assert load_scene_config(ROOT / "configs" / "scenes" / "tabletop.yaml") == SceneConfig()
    assert len(SceneConfig().questions.unseen) >= 3


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load_scene_config(tmp_path / "empty.yaml") == load_scene_config(None) == SceneConfig()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--size", "128x"], "--size must be"),
        (["--size", "8"], "--size must be"),
        (["--scenes", "0"], "--scenes must be at least 1"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_bad_flags(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate.main(["--out", str(tmp_path), *flags])


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "generate.json").write_text("[1]")
    with pytest.raises(InputError, match="was not written by this command"):
        generate.main(["--out", str(tmp_path)])
    assert (tmp_path / "generate.json").read_text() == "[1]"


# --- points on masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [2, 3])
def test_points_stay_on_thin_masks_after_rounding(decimals: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = np.zeros((96, 128), bool)
        row, column = rng.integers(0, 90), rng.integers(0, 110)
        mask[row : row + rng.integers(1, 6), column : column + rng.integers(2, 18)] = True
        points = sample_points(mask, 2, decimals, 2.0, rng)
        if points is not None:  # with two decimals a mask one pixel high may hold no point at all
            assert len(set(points)) == 2
            assert all(mask[int(np.floor(y * 96)), int(np.floor(x * 128))] for x, y in points)
            assert all(round(value, decimals) == value for point in points for value in point)
        center = center_on_mask(mask, decimals, *np.nonzero(mask))
        assert (center is None) == (not any_point(mask, decimals))
        assert center is None or on_mask(np.array([center]), mask)[0]


def any_point(mask: np.ndarray, decimals: int) -> bool:
    steps = np.arange(10**decimals + 1) / 10**decimals
    height, width = mask.shape
    rows, columns = np.floor(steps * height).astype(int), np.floor(steps * width).astype(int)
    return bool(mask[np.ix_(rows[rows < height], columns[columns < width])].any())


def test_interior_weights_move_points_inwards() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 20:80] = True
    depths = {}
    for interior in (0.0, 3.0):
        rng = np.random.default_rng(0)
        points = np.array([sample_points(mask, 1, 3, interior, rng) for _ in range(200)])[:, 0]
        depths[interior] = (0.3 - np.abs(points - 0.5)).min(1).mean()
    assert depths[3.0] > 1.5 * depths[0.0]


def test_a_point_on_the_border_belongs_to_the_pixel_it_opens() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    points = np.array([[0.5, 0.25], [0.75, 0.25], [0.5, 0.5], [0.7499, 0.4999], [1.0, 0.3], [-0.1, 0.3]])
    assert on_mask(points, mask).tolist() == [True, False, False, True, False, False]
    assert bounding_box(mask, *np.nonzero(mask)) == (0.5, 0.25, 0.75, 0.5)
