"""What is committed under data_samples/, and the commands that made it."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rendering import needs_gl

from trace_vlm.core.points import Point
from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.core.reasoning import parse
from trace_vlm.core.records import Sample
from trace_vlm.data.scenes import picks, sample_archive, tabletop
from trace_vlm.data.scenes.config import load_config
from trace_vlm.data.scenes.questions import baselines
from trace_vlm.eval.benchmark import open_suite
from trace_vlm.utils.command import InputError

ROOT = Path(__file__).parents[2]
NANO = ROOT / "configs" / "scenes" / "nano.yaml"
ARCHIVE = ROOT / "data_samples" / "sample_50_cor_data.zip"
TABLETOP = ROOT / "data_samples" / "tabletop"
LIMIT = 8 * 2**20


def read(archive: Path) -> tuple[list[Sample], dict[str, np.ndarray]]:
    """Samples and pictures of an archive, by name."""
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        pictures = {}
        for name in file.namelist():
            assert not name.startswith(("/", "..")) and "\\" not in name and os.path.normpath(name) == name
            if name.startswith(("images/", "masks/")):
                pictures[name] = np.asarray(Image.open(io.BytesIO(file.read(name))))
        records = json.loads(file.read("data.json"))
        assert "README.md" in file.namelist()
    return [Sample.from_json(record, f"sample {index}") for index, record in enumerate(records)], pictures


def check(found: list[Sample], pictures: dict[str, np.ndarray], each: int) -> None:
    assert Counter(sample.meta["task"] for sample in found) == dict.fromkeys(sample_archive.TASKS, each)
    assert len({sample.image for sample in found}) == len(found) == len({sample.id for sample in found})
    for sample in found:
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


def test_the_committed_samples() -> None:
    assert ARCHIVE.stat().st_size < LIMIT
    found, pictures = read(ARCHIVE)
    check(found, pictures, 25)
    relations = Counter(sample.meta["relation"] for sample in found)
    assert len(relations) >= 10 and max(relations.values()) <= 12


def test_the_committed_benchmark() -> None:
    lines = (TABLETOP / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ", 1)) for line in lines)
    files = {
        path.relative_to(TABLETOP).as_posix()
        for path in TABLETOP.rglob("*")
        if path.is_file() and path.name not in ("SHA256SUMS", "README.md")
    }
    assert set(sums) == files and len(files) == 202
    for name, expected in sums.items():
        assert hashlib.sha256((TABLETOP / name).read_bytes()).hexdigest() == expected, name
    assert sum((TABLETOP / name).stat().st_size for name in files) < LIMIT


def test_the_benchmark_s_questions() -> None:
    suite = open_suite(TABLETOP)
    boxes = open_suite(TABLETOP, "bbox_questions.jsonl")
    assert Counter(question.category for question in suite.questions) == {"seen": 70, "unseen": 30}
    assert Counter(question.meta["task"] for question in suite.questions) == {"object_reference": 50, "free_space": 50}
    assert len({question.meta["view"] for question in suite.questions}) == 100
    hidden = load_config(None).questions.unseen
    for question, box in zip(suite.questions, boxes.questions, strict=True):
        assert (question.category == "unseen") == (question.meta["relation"] in hidden)
        assert suite.image_size(question) == (640, 480) and question.text.endswith(POINTS_SUFFIX)
        assert (box.question_id, box.image, box.category) == (question.question_id, question.image, question.category)
        mask = suite.mask(question)
        assert all(mask[math.floor(y * 480), math.floor(x * 640)] for x, y in question.meta["points"])
    measured = baselines.measure(TABLETOP)["kinds"]
    assert set(measured) <= {"direct", "relational", "free", "between", "part"}
    assert max(row["uniform"] for row in measured.values()) < 25


def test_no_training_set_has_a_scene_of_the_benchmark() -> None:
    from trace_vlm.data.scenes.scene import BENCHMARK, TRAINING

    first = {
        tuple(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, 0, 0))).integers(1 << 62, size=4))
        for seed in (tabletop.SEED, 0, 1)
        for split in (TRAINING, BENCHMARK)
    }
    assert len(first) == 6


@needs_gl
def test_the_command_packs_samples(tmp_path: Path) -> None:
    flags = ["--each", "3", "--size", "160x120", "--config", str(NANO), "--work", str(tmp_path / "work")]
    for name in ("a.zip", "b.zip"):
        assert sample_archive.main(["--out", str(tmp_path / name), *flags]) == 0
    found, pictures = read(tmp_path / "a.zip")
    check(found, pictures, 3)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert "baseline" not in found[0].meta
    with pytest.raises(InputError, match=r"must name a \.zip"):
        sample_archive.main(["--out", str(tmp_path / "samples.tar")])
    with pytest.raises(InputError, match="--each must be at least 1"):
        sample_archive.main(["--out", str(tmp_path / "c.zip"), "--each", "0"])


@needs_gl
def test_a_model_s_answers_go_into_the_samples(tmp_path: Path, nano_folder: Path) -> None:
    flags = ["--each", "1", "--size", "128", "--config", str(NANO), "--baseline-model", str(nano_folder)]
    assert sample_archive.main(["--out", str(tmp_path / "a.zip"), *flags]) == 0
    for sample in read(tmp_path / "a.zip")[0]:
        baseline = sample.meta["baseline"]
        assert baseline["model"] == "nano" and isinstance(baseline["text"], str) and 0 <= baseline["accuracy"] <= 1


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty"):
        tabletop.main(["--out", str(tmp_path), "--work", str(tmp_path / "work")])


# --- choosing -------------------------------------------------------------------------------------------------------


def candidate(place: int, view: str, group: str) -> picks.Candidate:
    return picks.Candidate(place, view, "free_space", group)


def test_a_choice_is_spread_and_shows_every_picture_once() -> None:
    common = [candidate(place, f"v{place // 3}", f"free {'left' if place % 3 else 'right'}") for place in range(60)]
    rare = [candidate(60 + index, f"v{index}", "between between") for index in range(2)]
    chosen = picks.spread([*common, *rare], 12, np.random.default_rng(0))
    assert len(chosen) == 12 == len({one.view for one in chosen})
    assert Counter(one.group for one in chosen) == {"between between": 2, "free left": 5, "free right": 5}
    assert chosen == picks.spread([*common, *rare], 12, np.random.default_rng(0))
    used = {f"v{number}" for number in range(18)}
    assert len(picks.spread(common, 12, np.random.default_rng(0), used)) == 2


def test_chosen_records_come_in_their_order() -> None:
    chosen = [candidate(7, "a", "x"), candidate(2, "b", "x")]
    assert picks.at_places("abcdefghij", chosen, lambda one: one.place) == ["h", "c"]
