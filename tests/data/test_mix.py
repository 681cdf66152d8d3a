"""Mixing: the counts of a recipe, the same file twice, nested choices, parts that share no image, cards and exports."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sources_by_hand as hand
import yaml
from shell import ROOT, kill_when

from trace_vlm.core.records import read_samples
from trace_vlm.data import export
from trace_vlm.data.mix import Recipe, main
from trace_vlm.data.sources.__main__ import main as sources
from trace_vlm.data.sources.sample_checks import part_of
from trace_vlm.utils.command import run
from trace_vlm.utils.config import read_config
from trace_vlm.utils.files import sha256

RECIPES = sorted(ROOT.glob("configs/mixes/*.yaml"))
SMALL = ["--set", "scale=0.0002"]  # 10 of every 50,000
GOOD = {"name": "mine", "kind": "llava", "path": "data.json"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Both public data sets, small, where the recipes look for them."""
    folder = tmp_path_factory.mktemp("root")
    hand.robopoint(folder / "data/robopoint-data", 30)
    hand.trace(folder / "data/TRACE", 30)
    return folder


def mixed(root, out, *more, config=RECIPES[-1]):
    """The exit code of the command."""
    return run(main, ["--config", str(config), "--data-root", str(root), "--out", str(out), *map(str, more)])


def mix(root, out, *more, config=RECIPES[-1]):
    assert mixed(root, out, *SMALL, *more, config=config) == 0
    return {sample.id: sample for sample in read_samples(out)}


def reasons(sample):
    return "**Final Answer:**" in sample.conversations[1].text


def recipe(folder, *entries):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"sources": list(entries)}))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads_and_opens_with_its_command(path):
    assert f"trace.data.mix --config configs/mixes/{path.name}" in path.read_text().split("\nseed")[0]
    assert sum(entry.samples or 0 for entry in read_config(Recipe, path).sources) == 200_000


def test_the_mix_holds_what_the_recipe_says(root, tmp_path):
    samples = mix(root, tmp_path / "trace_200k.json")
    parts = [(sample.meta["source"], part_of(sample)) for sample in samples.values()]
    expected = {("object_ref", "object_reference"), ("region_ref", "free_space"), ("lvis", "detection")}
    assert {part: parts.count(part) for part in expected} == dict.fromkeys(expected, 10)
    assert sum(source == "vqa" and part in ("vqa", "text") for source, part in parts) == 10 and len(samples) == 40
    assert sum(map(reasons, samples.values())) == 20
    assert len({source for source, _ in parts[:12]}) > 2, "sources are mixed, not stacked"
    checked = ["check", "--data", str(tmp_path / "trace_200k.json"), "--images", str(root / "data"), "--workers", "1"]
    assert run(sources, checked) == 0, "every image is found"


def test_the_same_recipe_gives_the_same_bytes_whatever_the_order_of_the_files(root, tmp_path):
    first = mix(root, tmp_path / "a.json")
    (tmp_path / "root/data").mkdir(parents=True)
    (tmp_path / "root/data/robopoint-data").symlink_to(root / "data/robopoint-data")
    shutil.copytree(root / "data/TRACE", tmp_path / "root/data/TRACE")
    path = tmp_path / "root/data/TRACE/trace_train.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    mix(tmp_path / "root", tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert mix(root, tmp_path / "c.json", "--set", "seed=1", "scale=0.0002").keys() != first.keys()


def test_shares_of_reasoning_are_nested_on_the_same_samples_and_smaller_mixes_in_larger_ones(root, tmp_path):
    complete, before = mix(root, tmp_path / "100.json"), set()
    for share, expected in ((0, 0), (25, 4), (50, 10), (75, 16), (100, 20)):
        samples = mix(root, tmp_path / f"{share}.json", "--cor-share", share)
        assert samples.keys() == complete.keys()
        now = {identifier for identifier, sample in samples.items() if reasons(sample)}
        assert len(now) == expected and before <= now
        before = now
        for identifier, sample in samples.items():
            original = complete[identifier]
            assert sample.image == original.image
            assert original.conversations[1].text.endswith(sample.conversations[1].text), "the answer to the character"
    mix(root, tmp_path / "baseline.json", config=ROOT / "configs/mixes/robopoint.yaml")
    assert (tmp_path / "baseline.json").read_bytes() == (tmp_path / "0.json").read_bytes()
    small, large = (mix(root, tmp_path / f"{part}.json", "--set", f"scale=0.000{part}") for part in (1, 4))
    assert (len(small), len(large)) == (20, 80) and all(large[name] == sample for name, sample in small.items())


def test_a_missing_image_is_replaced_by_the_next_sample_and_reported(root, tmp_path, capsys):
    taken = next(sample for sample in mix(root, tmp_path / "a.json").values() if sample.meta["source"] == "region_ref")
    content = (image := root / "data" / taken.image).read_bytes()
    image.unlink()
    try:
        samples = mix(root, tmp_path / "b.json")
        assert len(samples) == 40 and taken.id not in samples
        problem = json.loads((tmp_path / "b.json.problems.jsonl").read_text().splitlines()[0])
        assert problem["problem"] == "image missing" and taken.id.endswith(problem["id"])
        assert mixed(root, tmp_path / "c.json", *SMALL, "--strict") == 2 and not (tmp_path / "c.json").exists()
        assert "image missing" in capsys.readouterr().err
        assert taken.id in mix(root, tmp_path / "c.json", "--check-images", "ignore")
    finally:
        image.write_bytes(content)


def test_masks_and_instance_maps_move_with_their_image(tmp_path):
    for name in ("one", "two"):
        for kind in ("images", "masks"):
            hand.picture(tmp_path / name / kind / "0.png")
        meta = {"kind": "free", "mask": "masks/0.png"}
        hand.write(tmp_path / name / "data.json", [hand.pointing("v0", "images/0.png", meta=meta)])
    config = recipe(tmp_path, *({"name": name, "kind": "scenes", "path": name} for name in ("one", "two")))
    samples = mix(tmp_path, tmp_path / "out.json", config=config)
    assert samples["one/v0"].image == "one/images/0.png" and samples["two/v0"].meta["mask"] == "two/masks/0.png"


def test_a_split_shares_no_image_and_stays_when_the_mix_changes(root, tmp_path):
    train = mix(root, tmp_path / "a.json", "--split", "0.3", "--set", "scale=0.0004")
    held = {sample.id: sample for sample in read_samples(tmp_path / "a_heldout.json")}
    assert len(train) + len(held) == 80 and 8 < len(held) < 45 and not train.keys() & held.keys()
    pictures = [{Path(sample.image).name for sample in part.values() if sample.image} for part in (train, held)]
    assert not pictures[0] & pictures[1]
    mix(root, tmp_path / "b.json", "--split", "0.3", "--cor-share", "0")
    assert {sample.id for sample in read_samples(tmp_path / "b_heldout.json")} < held.keys()


def test_a_photograph_under_two_names_falls_on_one_side(tmp_path):
    """COCO's images lie under coco/train2017 in one source and under train2017 in another."""
    for name, prefix in (("a", "coco/train2017"), ("b", "train2017")):
        records = [hand.record(f"{n}", f"{prefix}/{n:012d}.jpg", "What?", "That.") for n in range(40)]
        hand.write(tmp_path / name / "data.json", records)
        for number, record in enumerate(records):
            hand.picture(tmp_path / name / record["image"], seed=number)
    config = recipe(tmp_path, *({"name": name, "kind": "llava", "path": name} for name in ("a", "b")))
    out = tmp_path / "out.json"
    assert mixed(tmp_path, out, "--split", 0.5, config=config) == 0
    sides = [{Path(str(s.image)).name for s in read_samples(path)} for path in (out, tmp_path / "out_heldout.json")]
    assert all(sides) and not sides[0] & sides[1]


@pytest.mark.parametrize("entries, named", [
    ([], "sources"), ([GOOD | {"licence": "CC-BY"}], "CC-BY"), ([GOOD | {"smaples": 3}], "smaples"),
    ([GOOD | {"name": "a/b"}], "name"), ([GOOD, GOOD | {"path": "x.json"}], "mine"),
    ([GOOD, GOOD | {"name": "other"}], "other"), ([GOOD | {"path": "gone.json"}], "gone.json"),
    ([GOOD | {"image_folder": "gone"}], "gone"), ([GOOD | {"samples": 9}], "mine"), ([GOOD | {"cor": True}], "mine"),
])  # fmt: skip
def test_a_mistake_in_a_recipe_is_named(entries, named, tmp_path, capsys):
    hand.write(tmp_path / "data.json", [hand.record("a", None, "b", "c")])
    assert mixed(tmp_path, tmp_path / "out.json", config=recipe(tmp_path, *entries)) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("flags, named", [
    (["--split", 0.0001], "--split"), (["--split", 1], "--split"), (["--parquet", "hub"], "object_ref, region_ref"),
])  # fmt: skip
def test_what_cannot_be_written_leaves_no_file(root, tmp_path, monkeypatch, capsys, flags, named):
    monkeypatch.chdir(tmp_path)
    assert mixed(root, "a.json", *SMALL, *flags) == 2
    assert named in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_strictest_licence_wins_and_an_unknown_one_is_stricter_than_any():
    order = ["generated", "apache-2.0", "cc-by-4.0", "gemini-output", "flickr", "cc-by-nc-4.0", "llava-instruct"]
    for number in range(1, len(order)):
        assert export.strictest(reversed(order[: number + 1])) == order[number]
    assert export.strictest([*order, "unknown"]) == export.strictest([]) == "unknown"
    assert export.may_embed(["generated", "apache-2.0", "gemini-output"])
    assert not any(export.may_embed(["generated", name]) for name in ("flickr", "llava-instruct", "unknown"))


@pytest.mark.parametrize("kind, parts, stated, expected", [
    ("robopoint", ["free_space"], [], ("apache-2.0",)), ("trace", ["free_space"], [], ("unknown",)),
    ("robopoint", ["vqa", "detection"], [], ("flickr", "llava-instruct")), ("points", [], [], ("unknown",)),
    ("trace", ["free_space"], ["apache-2.0", "gemini-output"], ("apache-2.0", "gemini-output")),
])  # fmt: skip
def test_every_source_has_its_licence(kind, parts, stated, expected):
    assert export.licences_of(kind, parts, stated) == expected


def test_the_card_tells_counts_sources_licences_and_hashes(root, tmp_path):
    mix(root, tmp_path / "a.json", "--cor-share", "50")
    facts = json.loads((tmp_path / "a.card.json").read_text())
    assert (facts["licence"], facts["cor_share"], facts["seed"]) == ("unknown", 50, 0)
    counts = {source["name"]: (source["taken"], source["with_reasoning"]) for source in facts["sources"]}
    assert counts == {"object_ref": (10, 5), "region_ref": (10, 5), "lvis": (10, 0), "vqa": (10, 0)}
    assert facts["files"]["a.json"] == {"samples": 40, "sha256": sha256(tmp_path / "a.json")}
    source = root / "data/TRACE/trace_train.json"
    assert facts["sources"][0]["read_from"] == [{"file": source.name, "sha256": sha256(source)}]
    text = (tmp_path / "a.card.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert "| lvis | robopoint | 10 | 30 |" in text and re.search("40 conversations .* 10 of them with a Chain", text)


def exported(root, folder, **licence):
    """A mix of RoboPoint's two parts, one of them under `licence`, and its export."""
    pytest.importorskip("datasets", reason="comes with the extra [train]")
    entry = {"kind": "robopoint", "path": "data/robopoint-data", "samples": 10}
    parts = ({"name": part, "part": [part], **entry} for part in ("object_reference", "free_space"))
    config = recipe(folder, {**next(parts), **licence}, *parts)
    target = folder / "hub"
    assert mixed(root, folder / "out.json", "--parquet", target, "--split", 0.4, config=config) == 0
    card = (target / "README.md").read_text()
    return list(read_samples(folder / "out.json")), target, card, yaml.safe_load(card.split("---\n")[1])


def test_an_export_is_what_datasets_loads_with_its_images(root, tmp_path):
    samples, target, _, header = exported(root, tmp_path)
    from datasets import load_dataset

    loaded = load_dataset(str(target), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"]["id"][:] == [sample.id for sample in samples]
    assert loaded["validation"].num_rows == 20 - len(samples) and header["license"] == "apache-2.0"
    first = loaded["train"][0]
    assert first["image"].size == (32, 24) and first["conversations"] == samples[0].as_json()["conversations"]
    assert hand.converted("hub", target, tmp_path / "back.json", "--images", tmp_path / "images") == 0
    again = {sample.id: (tmp_path / "images" / sample.image) for sample in read_samples(tmp_path / "back.json")}
    assert again.keys() == {sample.id for sample in samples}
    for sample in samples:
        assert again[sample.id].read_bytes() == (root / "data/robopoint-data" / sample.image).read_bytes()


def test_images_are_named_only_when_one_licence_forbids_passing_them_on(root, tmp_path):
    samples, target, card, header = exported(root, tmp_path, licence=["flickr"])
    from datasets import load_dataset

    row = load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))[0]
    assert row["image"] == samples[0].image and "not every source allows" in card
    assert (header["license"], header["license_name"]) == ("other", "flickr")


def test_an_export_replaces_an_export_and_nothing_else(root, tmp_path, capsys):
    for _ in range(2):
        exported(root, tmp_path)
    (tmp_path / "hub/export.json").unlink()
    with pytest.raises(AssertionError):
        exported(root, tmp_path)
    assert "hub" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_export_goes_on_with_the_missing_shards(tmp_path):
    pytest.importorskip("datasets", reason="comes with the extra [train]")
    hand.picture(tmp_path / "a.png", (128, 128))
    hand.write(tmp_path / "data.json", [hand.pointing(str(number), "a.png") for number in range(2100)])
    config = recipe(tmp_path, {**GOOD, "path": "data.json", "licence": ["mit"]})
    target, partial = tmp_path / "hub", tmp_path / ".hub.partial"
    words = ["--config", config, "--data-root", tmp_path, "--out", tmp_path / "out.json", "--parquet", target]
    command = [sys.executable, "-m", "trace_vlm.data.mix", *map(str, words)]
    kill_when(lambda: any(partial.glob("data/train*.parquet")), command)
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("data/train*.parquet")}
    assert 1 <= len(kept) < 5 and not target.exists(), "killed in the middle"
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    shards = {path.name: path.stat().st_mtime_ns for path in target.glob("data/*.parquet")}
    assert len(shards) == 5 and all(shards[name] == made for name, made in kept.items())
    assert not partial.exists() and not list(target.glob("data/.*"))


def test_an_image_name_that_leaves_its_folder_is_never_embedded(tmp_path):
    secret = tmp_path / "secret.png"
    hand.picture(secret)
    hand.write(tmp_path / "set/data.json", [hand.pointing("a", "../secret.png"), hand.pointing("b", os.fspath(secret))])
    config = recipe(tmp_path, {**GOOD, "path": "set", "licence": ["mit"]})
    assert mixed(tmp_path, tmp_path / "out.json", "--parquet", tmp_path / "hub", config=config) == 2
    assert not (tmp_path / "hub").exists()
