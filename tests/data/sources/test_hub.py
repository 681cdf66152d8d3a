"""Folders from elsewhere: downloads from a local server, rows with pictures as `datasets` reads them, zips."""

import re
import zipfile

import pytest
import sources_by_hand as hand
from hub_server import COMMIT, hub, run_module

from trace_vlm.core.records import read_samples
from trace_vlm.data.sources import hub as hub_module
from trace_vlm.data.sources.hub import MARK, unpack
from trace_vlm.utils.command import InputError

REPOSITORY = "wentao-yuan/robopoint-data"
DOWNLOAD = ("trace_vlm.data.sources", "download", "--out", "got", "--repo")


def test_a_data_set_is_downloaded_once_and_then_read(tmp_path):
    pytest.importorskip("huggingface_hub", reason="comes with the extra [train]")
    with hub({REPOSITORY: hand.robopoint(tmp_path / "served", 2)}, "datasets") as (address, log):
        for fetched in (True, False):  # what exists is not fetched again
            log.clear()
            done = run_module(address, tmp_path / "home", *DOWNLOAD, REPOSITORY)
            assert done.returncode == 0, done.stderr
            assert any(f"/resolve/{COMMIT}/" in line for line in log) == fetched
    assert hand.converted("robopoint", tmp_path / "got", tmp_path / "out.json") == 0
    assert len(list(read_samples(tmp_path / "out.json"))) == 9


def test_what_is_missing_is_named(tmp_path):
    pytest.importorskip("huggingface_hub", reason="comes with the extra [train]")
    with hub({REPOSITORY: hand.robopoint(tmp_path / "served", 1)}, "datasets") as (address, _):
        only = run_module(address, tmp_path / "home", *DOWNLOAD, REPOSITORY, "--include", "*.json")
        unknown = run_module(address, tmp_path / "home", *DOWNLOAD, "nobody/nothing")
    assert only.returncode == 0 and ": 1 files of" in only.stdout
    assert unknown.returncode == 2 and "nobody/nothing" in unknown.stderr
    away = run_module(address, tmp_path / "home", *DOWNLOAD, REPOSITORY)
    assert away.returncode == 2 and REPOSITORY in away.stderr and "Traceback" not in away.stderr


def parquet(folder, rows):
    datasets = pytest.importorskip("datasets", reason="comes with the extra [train]")
    folder.mkdir()
    pictured = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    pictured.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_rows_with_pictures_become_files_and_samples_and_others_are_refused(tmp_path, capsys):
    content = hand.picture(tmp_path / "a.jpg")
    good = {**hand.pointing("one", "x"), "image": {"bytes": content, "path": "a.jpg"}, "meta": '{"kind": "free"}'}
    odd = {**hand.pointing("odd", "x"), "image": {"bytes": b"no picture", "path": None}, "meta": None}
    text = {**hand.record("text", None, "Hello", "Hi"), "image": None, "meta": None}
    rows = parquet(tmp_path / "rows", [good, good | {"id": "two"}, text, odd])
    images, out = tmp_path / "images", tmp_path / "out.json"
    assert hand.converted("hub", rows, out, "--images", images) == 0
    first, second, third = read_samples(out)
    assert first.image == second.image and (images / str(first.image)).read_bytes() == content
    assert first.meta == {"kind": "free"} and third.image is None
    assert '"odd"' in (tmp_path / "out.json.problems.jsonl").read_text()
    unnamed = parquet(tmp_path / "unnamed", [{"name": "x", "image": good["image"]}])
    assert hand.converted("hub", unnamed, tmp_path / "no.json", "--images", images) == 2
    assert re.match("error: .*id", capsys.readouterr().err.strip().splitlines()[-1])


def sample_zip(folder, root=""):
    """data.json in LLaVA's format, images/ and masks/, below `root` in the archive; and a Macintosh's leftovers."""
    made, records = folder / "made", []
    for number in range(4):
        for kind in ("images", "masks"):
            hand.picture(made / kind / f"{number}.png", seed=number)
        records.append(hand.pointing(f"s{number}", f"images/{number}.png", True, mask=f"masks/{number}.png"))
    hand.write(made / "data.json", records)
    path = folder / "sample_50_cor_data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for file in sorted(made.rglob("*")):
            target.write(file, root + file.relative_to(made).as_posix())
        target.writestr("__MACOSX/._data.json", b"\0\5\26\7")
    return path


@pytest.mark.parametrize("root", ["", "sample_50_cor_data/"])
def test_a_zip_of_samples_is_opened_directly(root, tmp_path):
    path, out = sample_zip(tmp_path, root), tmp_path / "out.json"
    assert hand.converted("llava", path, out) == 0
    samples = list(read_samples(out))
    assert [sample.id for sample in samples] == ["s0", "s1", "s2", "s3"]
    assert all((tmp_path / "sample_50_cor_data" / root / sample.image).is_file() for sample in samples)
    assert hand.converted("llava", path, out) == 0, "unpacked already: used again"
    (path.with_suffix("") / MARK).unlink()
    assert hand.converted("llava", path, out) == 2, "a folder that is something else is left alone"


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil", "/tmp/evil", "..\\evil.txt", "C:\\evil.txt", "C:evil"])
def test_no_path_leaves_the_folder(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        target.writestr("good.txt", b"good")
        target.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(InputError, match="evil"):
        unpack(tmp_path / "a.zip", tmp_path / "deep/in/here")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.zip"]


def test_links_and_devices_become_plain_files_and_a_damaged_entry_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as target:
        target.writestr("long.txt", bytes(range(256)) * 9)
        for name, mode in (("link", 0o120777), ("device", 0o020666)):
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.create_system = mode << 16, 3
            target.writestr(entry, "/etc/passwd")
    folder = unpack(tmp_path / "a.zip", tmp_path / "out")
    assert all((folder / name).read_text() == "/etc/passwd" for name in ("link", "device"))
    assert not any(path.is_symlink() or not path.is_file() for path in folder.iterdir())
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(content[:60] + b"\xff" * 20 + content[80:])
    with pytest.raises(InputError, match=r"b\.zip"):
        unpack(tmp_path / "b.zip", tmp_path / "other")


@pytest.mark.parametrize("damage", ["empty", "half", "entry", "encrypted", "understated", "too large"])
def test_a_broken_archive_is_one_sentence_and_leaves_nothing(damage, tmp_path, monkeypatch):
    content = bytearray((path := sample_zip(tmp_path)).read_bytes())
    with zipfile.ZipFile(path) as opened:
        entry = next(entry for entry in opened.infolist() if entry.filename.endswith("3.png"))
    if damage == "entry":
        content[entry.header_offset + 60 : entry.header_offset + 90] = bytes(30)
    elif damage == "encrypted":
        content[content.index(b"PK\1\2") + 8] |= 1  # the flags in the directory
    elif damage == "understated":
        content = content.replace(entry.file_size.to_bytes(4, "little"), (9).to_bytes(4, "little"))
    elif damage == "too large":
        monkeypatch.setattr(hub_module, "MAX_BYTES", 1000)
    path.write_bytes(content[: {"empty": 0, "half": len(content) // 2}.get(damage)])
    with pytest.raises(InputError, match=path.name):
        unpack(path, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made", path.name]
