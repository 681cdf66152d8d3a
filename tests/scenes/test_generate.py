"""The generator as a command: the same files however they were made, their content, summary and baselines."""

import fcntl
import json
import math
import os
import re
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nano_tokenizer import vocabulary
from parallel_workers import HOW, renderer_that_ends
from PIL import Image
from rendering import needs_gl
from scene_questions import pixels
from shell import kill_when

from trace_vlm.core.points import parse_points
from trace_vlm.core.prompts import POINTS_SUFFIX, bare_instruction
from trace_vlm.core.records import read_questions, read_samples
from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import DatasetSpec, load_scene_config
from trace_vlm.data.scenes.dataset_files import SHEET, FinishedScenes, pictures_are_readable, write_dataset
from trace_vlm.data.scenes.questions import baselines as shortcuts
from trace_vlm.data.scenes.render import SceneRenderer
from trace_vlm.data.scenes.scene import make_scene
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, read_jsonl

NANO = Path(__file__).parents[2] / "configs" / "scenes" / "nano.yaml"
GOLDEN = json.loads((Path(__file__).parent / "nano_golden.json").read_text())
SCENES, VIEWS = 8, 2

pytestmark = needs_gl


def arguments(out, *more, scenes=SCENES):
    return [*f"--out {out} --scenes {scenes} --views {VIEWS} --seed 3 --size 128x96 --config {NANO}".split(), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "training"
    assert generate.main(arguments(out)) == 0
    return out


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes")
    config = out / "unseen.yaml"
    config.write_text(NANO.read_text() + "  unseen: [behind, between]\n")
    assert generate.main(arguments(out / "bench", "--benchmark", "--config", str(config), scenes=4)) == 0
    assert generate.main(arguments(out / "training", "--config", str(config), scenes=4)) == 0
    return out


@pytest.fixture(scope="module")
def samples(folder):
    return list(read_samples(folder / "data.json"))


@pytest.fixture(scope="module")
def views(folder):
    return {view["view"]: view for _, view in read_jsonl(folder / "views.jsonl")}


def contents(folder):
    """Every file of a data set but generate.json, which holds the time it took."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "generate.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def scenes_rendered(folder):
    return int(read_json(folder / "generate.json")["timing"]["scenes_rendered"])


def test_killed_run_continues(folder, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "trace_vlm.data.scenes.generate", *arguments(out)]
    parts = out / "parts.jsonl"
    kill_when(lambda: parts.exists() and parts.read_bytes().count(b"\n") >= 2, command)
    done = parts.read_bytes().count(b"\n")
    assert 2 <= done < SCENES, "the run was not killed in the middle"
    assert not (out / "data.json").exists() and not (out / "generate.json").exists()
    with open(parts, "ab") as file:
        file.write(b'{"scene": 7, "views": [')  # as a kill leaves a line
    generate.main(arguments(out))
    assert scenes_rendered(out) == SCENES - done and contents(out) == contents(folder)


def test_renderer_has_no_thread_of_its_own():
    """Mesa's would use a fence after it is freed."""
    program = """if True:
        from pathlib import Path
        from trace_vlm.data.scenes.config import SceneConfig
        from trace_vlm.data.scenes.render import SceneRenderer

        with SceneRenderer(SceneConfig(), ((32, 32),)) as renderer:
            renderer.color()
            print(*(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")), sep="\\n")
    """
    environment = {name: value for name, value in os.environ.items() if name != "LP_NUM_THREADS"}
    names = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True).splitlines()
    assert names and not [name for name in names if name.startswith("llvmpipe")]


def test_scene_that_ends_every_worker_is_named(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(generate, "make_renderer", partial(renderer_that_ends, "SEGV", 3, 99, tmp_path / "count"))
    assert run(generate.main, arguments(out, "--workers", "2")) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"1 of {SCENES} scenes" in error and "scene 3" in error and HOW["SEGV"] in error
    assert (out / "parts.jsonl").read_bytes().count(b"\n") == SCENES - 1 and not (out / "data.json").exists()
    monkeypatch.undo()
    assert generate.main(arguments(out)) == 0
    assert scenes_rendered(out) == 1 and contents(out) == contents(folder)


def test_shards_merge_to_the_same_bytes(folder, tmp_path, capsys):
    out = tmp_path / "shards"
    generate.main(arguments(out, "--shard", "2/3"))
    assert not (out / "data.json").exists()
    with pytest.raises(InputError, match=r"5 of 8 .*0, 2, 3, 5, 6"):
        generate.main(["--out", str(out), "--merge"])
    generate.main(arguments(out, "--shard", "1/2", "--workers", "2"))  # shares may change on the way
    with pytest.raises(InputError, match="2 of 8"):
        generate.main(["--out", str(out), "--merge"])
    with open(out / "parts.1-of-2.jsonl", "ab") as running, pytest.raises(InputError, match="parts.1-of-2.jsonl"):
        fcntl.flock(running, fcntl.LOCK_EX)
        generate.main(["--out", str(out), "--merge"])
    generate.main(arguments(out, "--shard", "2/2"))
    assert generate.main(["--out", str(out), "--merge"]) == 0 and contents(out) == contents(folder)
    merged, direct = (read_json(path / "generate.json") for path in (out, folder))
    assert merged | {"timing": None} == direct | {"timing": None}
    capsys.readouterr()
    assert generate.main(["--out", str(out), "--merge"]) == 0 and "complete already" in capsys.readouterr().out


def test_what_a_crash_broke_is_made_again(folder, tmp_path):
    out = tmp_path / "crashed"
    generate.main(arguments(out, "--shard", "1/2"))
    generate.main(arguments(out, "--shard", "2/2"))
    for name, damage in (
        ("images/000002_0.png", lambda content: content[:-40]),
        ("masks/000003_1_2.png", lambda content: bytes(len(content))),
        ("instances/000004_0.png", lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]),
    ):
        (out / name).write_bytes(damage((out / name).read_bytes()))
    (out / "masks/000005_1_0.png").unlink()
    lines = (out / "parts.2-of-2.jsonl").read_bytes().splitlines(keepends=True)
    lines[0] = lines[0][:100] + b"\n"  # scene 1, torn in the middle of the file
    lines[3] = lines[3][: len(lines[3]) // 2]  # scene 7, cut off
    (out / "parts.2-of-2.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"6 of 8 .*1, 2, 3, 4, 5, 7"):
        generate.main(["--out", str(out), "--merge"])
    assert generate.main(arguments(out)) == 0
    assert scenes_rendered(out) == 6 and contents(out) == contents(folder)


@pytest.mark.parametrize("keep", [0, 7, 20, 60, 200, -1, -13, -20])
def test_cut_picture_is_seen_as_broken(folder, tmp_path, keep):
    picture, content = tmp_path / "cut.png", (folder / "images" / "000000_0.png").read_bytes()
    picture.write_bytes(content)
    scene = {"scene": 0, "views": [{"image": "cut.png", "depth": None}], "samples": []}
    assert pictures_are_readable(tmp_path, scene)
    picture.write_bytes(content[:keep])
    assert not pictures_are_readable(tmp_path, scene)


class Sample(dict):
    """A sample that a weak reference can follow."""


class CountedScenes(FinishedScenes):
    alive, most = weakref.WeakValueDictionary(), 0  # samples in memory, and how many there were at most

    def __getitem__(self, number):
        scene = super().__getitem__(number)
        samples = list(map(Sample, scene["samples"]))
        self.alive.update({id(sample): sample for sample in samples})
        CountedScenes.most = max(CountedScenes.most, len(self.alive))
        return scene | {"samples": samples}


@pytest.mark.parametrize("as_benchmark", [False, True])
def test_memory_does_not_grow_with_the_scenes(tmp_path, as_benchmark):
    total = 30
    generate.main(arguments(tmp_path, "--shard", "8/8"))  # leaves scene 7 and its line
    line = json.loads((tmp_path / "parts.8-of-8.jsonl").read_text())
    with open(tmp_path / "parts.jsonl", "w") as file:
        file.writelines(json.dumps({**line, "scene": number}) + "\n" for number in range(total))
    CountedScenes.most = 0
    summary = write_dataset(CountedScenes(tmp_path, total), load_scene_config(NANO).questions, as_benchmark)
    assert summary["samples"] == total * len(line["samples"])
    # No more than two scenes at a time, and what the contact sheet shows.
    assert 0 < CountedScenes.most <= 2 * len(line["samples"]) + SHEET


def test_complete_folder_is_left_alone_and_other_settings_are_refused(folder, tmp_path):
    before, config = (folder / "generate.json").stat().st_mtime_ns, tmp_path / "other.yaml"
    assert generate.main(arguments(folder, "--workers", "2")) == 0
    config.write_text(NANO.read_text().replace("num_points: 2", "num_points: 3"))
    changes = ("--seed", "4", "seed was 3, now 4"), ("--config", str(config), "num_points was 2, now 3")
    for flag, value, named in changes:
        with pytest.raises(InputError, match=named):
            generate.main(arguments(folder, flag, value))
    assert (folder / "generate.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("split", sorted(GOLDEN))
def test_the_nano_models_world_is_that_recorded_with_its_weights(split, tmp_path):
    """Up to what a GL driver rounds (pixel counts, points)."""
    wanted = GOLDEN[split]
    spec = DatasetSpec(tmp_path, load_scene_config(NANO), ((128, 128),), 2, 5, split == "benchmark")
    with SceneRenderer(spec.config, spec.sizes) as renderer:
        scenes = [make_scene(spec, number, renderer) for number in range(len(wanted["views"]) // 2)]
    for now, then in zip((view for scene in scenes for view in scene["views"]), wanted["views"], strict=True):
        assert now["view"] == then["view"]
        assert np.abs(np.subtract(now["camera"]["world_from_camera"], then["camera"])).max() < 1e-5
        assert np.abs(np.subtract(now["surface"]["half_size"], then["half_size"])).max() < 1e-5
        assert [item["name"] for item in now["objects"]] == [row[0] for row in then["objects"]]
        for item, (_, x, y, radius, height, count) in zip(now["objects"], then["objects"], strict=True):
            assert (*item["position"], item["radius"], item["height"]) == (x, y, 0.0, radius, height)
            assert abs(item["pixels"] - count) <= 3 + 0.02 * count
    for now, then in zip((sample for scene in scenes for sample in scene["samples"]), wanted["samples"], strict=True):
        meta, removed = now["meta"], now["meta"].get("removed")
        assert now["instruction"] == then["text"]
        assert (meta["kind"], meta["relation"]) == (then["kind"], then["relation"])
        assert (meta["target"] and meta["target"]["instance"]) == then["target"]
        assert [item["instance"] for item in meta["references"]] == then["references"]
        assert (removed and [removed["category"], *removed["position"][:2], removed["radius"]]) == then["removed"]
        assert np.abs(np.subtract(meta["points"], then["points"])).max() <= 0.03


def test_samples_are_complete(folder, samples):
    assert len({sample.id for sample in samples}) == len(samples) == SCENES * VIEWS * 6
    assert [sample.meta["kind"] for sample in samples[:6]] == ["direct", *["relational"] * 2, "between", *["free"] * 2]
    names = {"uniform", "center", "near_reference", "random_noun", "extreme", "nearest"}
    for sample in samples:
        assert (folder / sample.image).is_file() and set(sample.meta["shortcuts"]) >= names
        question, answer = (turn.text for turn in sample.conversations)
        assert question.startswith("<image>\n") and question.endswith(f" {POINTS_SUFFIX}")
        text = bare_instruction(question)
        assert len(text.split()) <= 14 and set(re.findall(r"\w+|[^\w\s]", text)) <= set(vocabulary())
        assert re.fullmatch(r"\[\(0\.\d\d, 0\.\d\d\), \(0\.\d\d, 0\.\d\d\)\]", answer)
        assert [[point.x, point.y] for point in parse_points(answer)] == sample.meta["points"]
        assert set(np.unique(pixels(folder / sample.meta["mask"]))) == {0, 255}


def test_boxes_centers_and_colors_are_those_of_the_instances(folder, views):
    hues, right = {"red": 0, "orange": 26, "yellow": 53, "green": 127, "blue": 229, "purple": 284}, []
    for view in views.values():
        image, instances = pixels(folder / view["image"]), pixels(folder / view["instances"])
        assert sum(item["pixels"] for item in view["objects"]) == (instances >= 2).sum()
        for item in view["objects"]:
            rows, columns = np.nonzero(instances == item["instance"])
            border = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.array(item["box"]) * [128, 96, 128, 96] - border).max() < 0.02
            x, y = item["center"]
            assert instances[math.floor(y * 96), math.floor(x * 128)] == item["instance"]
            rgb = image[instances == item["instance"]].astype(float)
            strong = rgb[rgb.max(1) - rgb.min(1) > 40]  # not the metal of a can's lid
            r, g, b = np.median(strong, 0)
            hue = math.degrees(math.atan2(math.sqrt(3) * (g - b), 2 * r - g - b)) % 360
            nearest = min(hues, key=lambda name: min(abs(hue - hues[name]), 360 - abs(hue - hues[name])))
            right.append(nearest == item["color"])
    assert np.mean(right) >= 0.98


def test_benchmark_layout_and_unseen_relations(benchmark):
    folder = benchmark / "bench"
    questions = read_questions(folder / "point_questions.jsonl")
    boxes = read_questions(folder / "bbox_questions.jsonl")
    assert [question.question_id for question in questions] == list(range(4 * VIEWS * 6))
    assert not (folder / "data.json").exists()
    for question, box in zip(questions, boxes, strict=True):
        assert (folder / "images" / question.image).is_file()
        assert (folder / "masks" / f"{question.question_id}.png").is_file()
        assert question.text.endswith(POINTS_SUFFIX) and "bounding box" in box.text
        assert (box.question_id, box.image, box.meta) == (question.question_id, question.image, question.meta)
        assert (question.category == "unseen") == (question.meta["relation"] in ("behind", "between"))
    assert {question.category for question in questions} == {"seen", "unseen"}
    relations = {sample.meta["relation"] for sample in read_samples(benchmark / "training" / "data.json")}
    assert relations == {None, "left", "right", "front", "next to"}
    first = [next(read_jsonl(benchmark / name / "views.jsonl"))[1]["objects"] for name in ("bench", "training")]
    assert first[0] != first[1]  # one seed, other scenes


def test_summary_and_baselines_command(folder, benchmark, tmp_path, samples):
    summary = read_json(folder / "generate.json")
    percent = summary["shortcut_baselines"]
    assert summary["views"] == SCENES * VIEWS and summary["counts"]["direct"] == SCENES * VIEWS
    assert percent["relational"]["extreme"] == percent["relational"]["nearest"] == 50.0
    assert 0 < percent["free"]["uniform"] < 20 and percent["between"]["midpoint"] > 20
    assert percent["free"]["near_reference"] >= percent["free"]["reference"]
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 500
    assert not (folder / "parts.jsonl").exists()
    result = shortcuts.measure(folder)
    assert result["questions"] == len(samples) and result["kinds"] == percent
    assert result["fixed_shifts"] == summary["fixed_shifts"]
    masks = {kind: [pixels(folder / one.meta["mask"]) > 0 for one in samples if one.meta["kind"] == kind]
             for kind in ("free", "between")}  # fmt: skip
    assert result["kinds"]["free"]["center"] == round(100 * np.mean([mask[48, 64] for mask in masks["free"]]), 1)
    assert result["kinds"]["between"]["uniform"] == round(100 * np.mean([mask.mean() for mask in masks["between"]]), 1)
    assert shortcuts.main(["--data", str(benchmark / "bench"), "--json", str(tmp_path / "numbers.json")]) == 0
    assert read_json(tmp_path / "numbers.json")["kinds"]["relational"].keys() >= {"extreme", "nearest", "random_noun"}


@pytest.mark.parametrize("content, named", [
    ('[{"id": "7", "conversations": [{"from": "human", "value": "Hi"}]}]', r"data\.json, 7: .*'task'"),
    (None, r"data\.json"), ("[]", "questions")])  # fmt: skip
def test_baselines_of_other_folders_are_refused(tmp_path, content, named):
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=named):
        shortcuts.main(["--data", str(tmp_path)])


def test_masks_of_several_sizes_give_one_shift(tmp_path):
    metas = []
    for number, (width, height) in enumerate([(64, 48), (128, 96), (48, 96)]):
        mask = np.zeros((height, width), np.uint8)
        mask[height // 2 : height * 3 // 4, width * 5 // 8 : width * 7 // 8] = 255
        Image.fromarray(mask).save(tmp_path / f"{number}.png")
        references = [{"center": [0.25, 0.5]}] if number else []  # without one, from the middle
        metas.append({"task": "free_space", "relation": "right" if number else "right part", "mask": f"{number}.png",
                      "references": references, "image_size": [width, height]})  # fmt: skip
    shifts = shortcuts.fit_shifts(tmp_path, metas)
    for meta in metas:
        point = shortcuts.shifted_reference(meta, shifts)
        assert point is not None and 0.6 <= point[0] <= 0.9 and 0.48 <= point[1] <= 0.77


def test_missing_gl_is_one_sentence(tmp_path, monkeypatch):
    environment = os.environ | {"__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path), "MUJOCO_GL": "egl"}
    command = [sys.executable, "-m", "trace_vlm.data.scenes.generate", "--out", str(tmp_path / "out"), "--scenes", "1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in result.stderr
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(InputError, match="MUJOCO_GL.*vulkan"):
        generate.main(["--out", str(tmp_path / "out")])
