"""Zips of samples: what is in them is read, and nothing in them can harm."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
import sources_by_hand as hand

from trace_vlm.core.records import read_samples
from trace_vlm.data.sources import archive
from trace_vlm.data.sources.archive import unpack
from trace_vlm.data.sources.cli import main
from trace_vlm.utils.command import InputError, run


def sample_zip(folder: Path, root: str = "") -> Path:
    """data.json in LLaVA's format, images/ and masks/, below `root` in the archive; and a Macintosh's leftovers."""
    made = folder / "made"
    records = []
    for number in range(4):
        for kind in ("images", "masks"):
            hand.picture(made / kind / f"{number}.png", seed=number)
        records.append(hand.pointing(f"s{number}", f"images/{number}.png", True, mask=f"masks/{number}.png"))
    hand.write(made / "data.json", records)
    path = folder / "sample_50_cor_data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for one in sorted(made.rglob("*")):
            target.write(one, root + one.relative_to(made).as_posix())
        target.writestr("__MACOSX/._data.json", b"\0\5\26\7")
    return path


@pytest.mark.parametrize("root", ["", "sample_50_cor_data/"])
def test_a_zip_of_samples_is_opened_directly(root: str, tmp_path: Path) -> None:
    path, out = sample_zip(tmp_path, root), tmp_path / "out.json"
    command = ["convert", "--kind", "llava", "--path", str(path), "--out", str(out)]
    assert run(main, command) == 0
    samples = list(read_samples(out))
    assert [sample.id for sample in samples] == ["s0", "s1", "s2", "s3"]
    folder = tmp_path / "sample_50_cor_data" / root
    assert all((folder / str(sample.image)).is_file() for sample in samples)
    assert run(main, command) == 0, "unpacked already: used again"
    (path.with_suffix("") / archive.MARK).unlink()
    assert run(main, command) == 2, "a folder that is something else is left alone"


def one_entry(path: Path, name: str, content: bytes = b"x", mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("good.txt", b"good")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        entry.compress_type = zipfile.ZIP_DEFLATED
        target.writestr(entry, content)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt", "C:evil"]
)
def test_no_path_leaves_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep/in/here"
    with pytest.raises(InputError, match="would leave the folder"):
        unpack(one_entry(tmp_path / "a.zip", name), folder)
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["a.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a link or a device"):
        unpack(one_entry(tmp_path / "a.zip", "link", b"/etc/passwd", kind | 0o777), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = one_entry(tmp_path / "a.zip", "zeros", bytes(70 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="a bomb"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_entry_gives_no_more_than_it_declares(tmp_path: Path) -> None:
    """A bomb that understates its size in the directory, which is all that can be looked at beforehand."""
    path = one_entry(tmp_path / "a.zip", "zeros", bytes(70 << 20))
    content = path.read_bytes().replace((70 << 20).to_bytes(4, "little"), (9).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(InputError, match="no zip that can be read"):
        unpack(path, tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.zip"]


def test_too_many_files_names_that_meet_and_encryption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="two entries are called 'GOOD.txt'"):
        unpack(one_entry(tmp_path / "a.zip", "GOOD.txt"), tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_FILES", 1)
    with pytest.raises(InputError, match="2 files; more than 1"):
        unpack(one_entry(tmp_path / "b.zip", "b"), tmp_path / "out")
    monkeypatch.undo()
    path = one_entry(tmp_path / "c.zip", "c")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the directory's flags: encrypted
    path.write_bytes(content)
    with pytest.raises(InputError, match="is encrypted"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.95])
def test_a_broken_archive_is_one_sentence(cut: float, tmp_path: Path) -> None:
    path = sample_zip(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(InputError, match="is no zip that can be read"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_inside_an_entry_leaves_nothing_behind(tmp_path: Path) -> None:
    path = sample_zip(tmp_path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        entry = next(one for one in opened.infolist() if one.filename.endswith("3.png"))
    content[entry.header_offset + 60 : entry.header_offset + 90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no zip that can be read"):
        unpack(path, tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["made", path.name]
