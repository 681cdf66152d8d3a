"""What is committed under data_samples/, and the scripts that made it."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import picks
import pytest
import sample_archive
import tabletop
from PIL import Image
from rendering import needs_gl

from trace_vlm.core.points import Point
from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.core.reasoning import parse
from trace_vlm.core.records import Sample
from trace_vlm.data.scenes.config import load_scene_config
from trace_vlm.data.scenes.questions import baselines
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.utils.command import InputError

ROOT = Path(__file__).parents[2]
NANO = ROOT / "configs" / "scenes" / "nano.yaml"
ARCHIVE = ROOT / "data_samples" / "sample_50_cor_data.zip"
TABLETOP = ROOT / "data_samples" / "tabletop"
LIMIT = 8 * 2**20


def check(path: Path, each: int) -> list[Sample]:
    """The samples of an archive, after a look at every file in it."""
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert {name.split("/")[0] for name in file.namelist()} == {"data.json", "README.md", "images", "masks"}
        pictures = {
            name: np.asarray(Image.open(io.BytesIO(file.read(name))))
            for name in file.namelist()
            if name.startswith(("images/", "masks/"))
        }
        records = json.loads(file.read("data.json"))
    samples = [Sample.from_json(record, f"sample {index}") for index, record in enumerate(records)]
    assert Counter(sample.meta["task"] for sample in samples) == dict.fromkeys(sample_archive.TASKS, each)
    assert len({sample.image for sample in samples}) == len(samples) == len({sample.id for sample in samples})
    for sample in samples:
        question, answer = (turn.text for turn in sample.conversations)
        assert question.startswith("<image>\n") and question.endswith(POINTS_SUFFIX)
        response = parse(answer)
        assert len(response.steps) >= 4 and all(step.text for step in response.steps), sample.id
        mask = pictures[sample.meta["mask"]]
        height, width = mask.shape
        assert pictures[str(sample.image)].shape == (height, width, 3) and set(np.unique(mask)) <= {0, 255}
        assert [[point.x, point.y] for point in response.points if isinstance(point, Point)] == sample.meta["points"]
        for x, y in sample.meta["points"]:
            assert mask[math.floor(y * height), math.floor(x * width)] == 255, sample.id
    return samples


def test_committed_archive() -> None:
    assert ARCHIVE.stat().st_size < LIMIT
    relations = Counter(sample.meta["relation"] for sample in check(ARCHIVE, 25))
    assert len(relations) >= 10 and max(relations.values()) <= 12


def test_committed_benchmark_has_the_stated_hashes() -> None:
    sums = dict(reversed(line.split("  ", 1)) for line in (TABLETOP / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(TABLETOP).as_posix() for path in TABLETOP.rglob("*") if path.is_file()}
    assert set(sums) == files - {"SHA256SUMS", "README.md"} and len(sums) == 202
    for name, expected in sums.items():
        assert hashlib.sha256((TABLETOP / name).read_bytes()).hexdigest() == expected, name
    assert sum((TABLETOP / name).stat().st_size for name in sums) < LIMIT


def test_questions_of_the_committed_benchmark() -> None:
    suite, boxes = open_benchmark(TABLETOP), open_benchmark(TABLETOP, "bbox_questions.jsonl")
    assert Counter(question.category for question in suite.questions) == {"seen": 70, "unseen": 30}
    assert Counter(question.meta["task"] for question in suite.questions) == {"object_reference": 50, "free_space": 50}
    hidden = load_scene_config(None).questions.unseen
    assert all((one.category == "unseen") == (one.meta["relation"] in hidden) for one in suite.questions)
    for question, box in zip(suite.questions, boxes.questions, strict=True):
        assert (box.question_id, box.image, box.category) == (question.question_id, question.image, question.category)
        assert suite.mask(question).shape == (480, 640) and question.text.endswith(POINTS_SUFFIX)
    measured = baselines.measure(TABLETOP)["kinds"]
    assert max(row["uniform"] for row in measured.values()) < 25


@needs_gl
def test_archive_script_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    flags = ["--each", "3", "--size", "160x120", "--config", str(NANO), "--work", str(tmp_path / "work")]
    for name in ("a.zip", "b.zip"):
        assert sample_archive.main(["--out", str(tmp_path / name), *flags]) == 0
    assert "baseline" not in check(tmp_path / "a.zip", 3)[0].meta
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@needs_gl
def test_archive_with_the_answers_of_a_model(tmp_path: Path, nano_folder: Path) -> None:
    flags = ["--each", "1", "--size", "128", "--config", str(NANO), "--baseline-model", str(nano_folder)]
    assert sample_archive.main(["--out", str(tmp_path / "a.zip"), *flags]) == 0
    for sample in check(tmp_path / "a.zip", 1):
        baseline = sample.meta["baseline"]
        assert baseline["model"] == "nano" and isinstance(baseline["text"], str) and 0 <= baseline["accuracy"] <= 1


@pytest.mark.parametrize("flags, named", [(["a.tar"], "a.tar"), (["a.zip", "--each", "0"], "--each")])
def test_wrong_flags_of_the_archive_script(tmp_path: Path, flags: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        sample_archive.main(["--out", str(tmp_path / flags[0]), *flags[1:]])


def test_tabletop_script_refuses_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match=str(tmp_path)):
        tabletop.main(["--out", str(tmp_path), "--work", str(tmp_path / "work")])


# --- choosing -------------------------------------------------------------------------------------------------------


def candidate(position: int, view: str, group: str) -> picks.Candidate:
    return picks.Candidate(position, view, "free_space", group)


def test_choice_is_spread_and_shows_every_picture_once() -> None:
    common = [candidate(index, f"v{index // 3}", f"free {'left' if index % 3 else 'right'}") for index in range(60)]
    rare = [candidate(60 + index, f"v{index}", "between between") for index in range(2)]
    chosen = picks.spread([*common, *rare], 12, np.random.default_rng(0))
    assert len(chosen) == 12 == len({pick.view for pick in chosen})
    assert Counter(pick.group for pick in chosen) == {"between between": 2, "free left": 5, "free right": 5}
    assert chosen == picks.spread([*common, *rare], 12, np.random.default_rng(0))
    used = {f"v{number}" for number in range(18)}
    assert len(picks.spread(common, 12, np.random.default_rng(0), used)) == 2
    assert picks.at_positions("abcdefghij", [candidate(7, "a", "x"), candidate(2, "b", "x")]) == ["h", "c"]
