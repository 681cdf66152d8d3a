"""What is committed under data_samples/, and the scripts that made it."""

import hashlib
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
TABLETOP, CHAINS = ROOT / "data_samples" / "tabletop", ROOT / "data_samples" / "tabletop_chain"


def check(path, each):
    """The samples of an archive, after a look at every file in it."""
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert {name.split("/")[0] for name in file.namelist()} == {"data.json", "README.md", "images", "masks"}
        pictures = {name: np.asarray(Image.open(file.open(name))) for name in file.namelist() if name.endswith("g")}
        records = json.loads(file.read("data.json"))
    samples = [Sample.from_json(record, f"sample {index}") for index, record in enumerate(records)]
    assert Counter(sample.meta["task"] for sample in samples) == dict.fromkeys(sample_archive.TASKS, each)
    assert len({sample.image for sample in samples}) == len(samples) == len({sample.id for sample in samples})
    for sample in samples:
        question, answer = (turn.text for turn in sample.conversations)
        assert question.startswith("<image>\n") and question.endswith(POINTS_SUFFIX)
        response = parse(answer)
        assert len(response.steps) >= 4 and all(step.text for step in response.steps), sample.id
        height, width = (mask := pictures[sample.meta["mask"]]).shape
        assert pictures[str(sample.image)].shape == (height, width, 3) and set(np.unique(mask)) <= {0, 255}
        assert [[point.x, point.y] for point in response.points if isinstance(point, Point)] == sample.meta["points"]
        for x, y in sample.meta["points"]:
            assert mask[math.floor(y * height), math.floor(x * width)] == 255, sample.id
    return samples


def test_committed_archive():
    assert ARCHIVE.stat().st_size < 8 * 2**20
    samples = check(ARCHIVE, 25)
    relations = Counter(sample.meta["relation"] for sample in samples)
    assert {sample.meta["baseline"]["model"] for sample in samples} == {"nano-direct"}
    assert len(relations) >= 10 and max(relations.values()) <= 12


@pytest.mark.parametrize("folder, count, megabytes", [
    (TABLETOP, 202, 8), (CHAINS, 403, 4), (TABLETOP.with_name("tabletop_absent"), 103, 1)])  # fmt: skip
def test_committed_benchmarks_are_complete(folder, count, megabytes):
    sums = dict(reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(sums) == files - {"SHA256SUMS", "README.md"} and len(sums) == count
    for name, expected in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    assert sum((folder / name).stat().st_size for name in sums) < megabytes * 1e6


def test_committed_chains():
    asked = Counter((question.image, len(question.meta["hops"])) for question in open_benchmark(CHAINS).questions)
    assert len(asked) == 300 == asked.total() and len({image for image, _ in asked}) == 100
    rows = [row for kind, row in baselines.measure(CHAINS)["kinds"].items() if "chain" in kind]
    assert len(rows) == 4 and not any(row[name] for row in rows for name in ("no_first_hop", "other_middle"))


def test_committed_benchmark():
    suite, boxes = open_benchmark(TABLETOP), open_benchmark(TABLETOP, "bbox_questions.jsonl")
    assert Counter(question.category for question in suite.questions) == {"seen": 70, "unseen": 30}
    assert Counter(question.meta["task"] for question in suite.questions) == {"object_reference": 50, "free_space": 50}
    hidden = load_scene_config(None).questions.unseen
    assert all((one.category == "unseen") == (one.meta["relation"] in hidden) for one in suite.questions)
    for question, box in zip(suite.questions, boxes.questions, strict=True):
        assert (box.question_id, box.image, box.category) == (question.question_id, question.image, question.category)
        assert suite.mask(question).shape == (480, 640) and question.text.endswith(POINTS_SUFFIX)
    assert max(row["uniform"] for row in baselines.measure(TABLETOP)["kinds"].values()) < 25


@needs_gl
def test_archive_script_gives_the_same_bytes_twice(tmp_path):
    flags = ["--each", "3", "--size", "160x120", "--config", str(NANO), "--work", str(tmp_path / "work")]
    for name in ("a.zip", "b.zip"):
        assert sample_archive.main(["--out", str(tmp_path / name), *flags]) == 0
    assert "baseline" not in check(tmp_path / "a.zip", 3)[0].meta
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@needs_gl
def test_archive_with_the_answers_of_a_model(tmp_path, nano_folder):
    flags = ["--each", "1", "--size", "128", "--config", str(NANO), "--baseline-model", str(nano_folder)]
    assert sample_archive.main(["--out", str(tmp_path / "a.zip"), *flags]) == 0
    for sample in check(tmp_path / "a.zip", 1):
        baseline = sample.meta["baseline"]
        assert baseline["model"] == "nano" and isinstance(baseline["text"], str) and 0 <= baseline["accuracy"] <= 1


@pytest.mark.parametrize("script, flags, named", [
    (sample_archive, "a.tar", "a.tar"), (sample_archive, "a.zip --each 0", "--each"),
    (tabletop, "filled --work work", "filled")])  # fmt: skip
def test_wrong_flags_and_a_folder_with_files_are_refused(tmp_path, monkeypatch, script, flags, named):
    monkeypatch.chdir(tmp_path)
    Path("filled").mkdir()
    Path("filled/mine.txt").write_text("precious")
    with pytest.raises(InputError, match=named):
        script.main(["--out", *flags.split()])


def test_choice_is_spread_and_shows_every_picture_once():
    sides = ("free right", "free left", "free left")
    common = [picks.Candidate(index, f"v{index // 3}", "free_space", sides[index % 3]) for index in range(60)]
    rare = [picks.Candidate(60 + index, f"v{index}", "free_space", "between between") for index in range(2)]
    chosen = picks.spread([*common, *rare], 12, np.random.default_rng(0))
    assert len(chosen) == 12 == len({pick.view for pick in chosen})
    assert Counter(pick.group for pick in chosen) == {"between between": 2, "free left": 5, "free right": 5}
    assert chosen == picks.spread([*common, *rare], 12, np.random.default_rng(0))
    assert len(picks.spread(common, 12, np.random.default_rng(0), {f"v{number}" for number in range(18)})) == 2
    assert picks.at_positions("abcdefghij", [common[7], common[2]]) == ["h", "c"]
