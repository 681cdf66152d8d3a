"""Files: streams in constant memory, mistakes named by line, complete or not at all, and kills that lose nothing."""

import json
import os
import resource
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_vlm.utils import files
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import JsonlWriter, new_folder, read_json, read_json_list, read_jsonl, write_json
from trace_vlm.utils.jsonl_index import JsonlIndex, hash_key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.jsonl"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


@given(st.lists(json_objects, max_size=6), st.integers(1, 40), st.sampled_from([None, 0, 3]), st.booleans())
def test_lists_are_read_whatever_the_chunks(tmp_path_factory, records, chunk, indent, ascii_only):
    path = tmp_path_factory.mktemp("chunks") / "list.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", newline="\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", chunk)
        entries = list(read_json_list(path))
    assert [(index, record) for _, index, record in entries] == list(enumerate(records))
    lines = path.read_text(encoding="utf-8").split("\n")
    assert all(lines[line - 1].lstrip(" [,").startswith("{") for line, _, _ in entries)


LIST_MISTAKES = {
    '{"a": 1}': "line 1", "[": "line 1", '[{"a": 1}': "line 1.* 1 record", '[{"a": 1}\n{"a": 2}]': "line 2",
    '[{"a": 1},\n]': "line 2", "[1]": r"line 1.*record 0", '[{"a": 1}]\n[]': "line 2",
    '[\n{"a": 1},\n{"b": tru}]': "line 3, record 1", '[\n{"a": "cut': "line 2, record 0",
    '[\n{"a": "line\nbreak"}]': "line 2, record 0", '[{"a": ' + "9" * 5000 + "}]": "line 1, record 0",
    '[{"a": ' + "[" * 100_000: "record 0",
}  # fmt: skip


@pytest.mark.parametrize("chunk", [1 << 20, 7])
@pytest.mark.parametrize("text", LIST_MISTAKES)
def test_mistakes_in_a_list(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(files, "CHUNK", chunk)
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(InputError, match=rf"list\.json.*{LIST_MISTAKES[text]}"):
        list(read_json_list(tmp_path / "list.json"))


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    for read in (read_json, files.sha256):
        for path in (tmp_path / "nowhere.json", tmp_path):
            with pytest.raises(InputError, match=str(path)):
                read(path)
    (tmp_path / "run.json").write_text('{\n"a": 1,\n"b" 2}')
    with pytest.raises(InputError, match=r"run\.json, line 3"):
        read_json(tmp_path / "run.json")
    for path in (tmp_path / "run.json" / "x.json", tmp_path):
        for write in (lambda path: write_json(path, {}), JsonlWriter):
            with pytest.raises(InputError, match=str(path)):
                write(path)


@pytest.mark.parametrize("one_line", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path, one_line):
    path = tmp_path / "data.json"
    files.write_json_list(path, ({"id": number, "text": "é [(0.1, 0.2)], " * 1000} for number in range(500)))
    if one_line:  # as json.dump writes it
        path.write_bytes(path.read_bytes().replace(b"\n", b""))
    assert path.stat().st_size > 6 << 20
    (tmp_path / "broken.json").write_text('[{"id": oops},\n' + " " * (8 << 20))
    tracemalloc.start()
    count = sum(1 for _ in read_json_list(path))
    with pytest.raises(InputError, match="record 0"):
        list(read_json_list(tmp_path / "broken.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 500 and peak < 3 << 20  # a few chunks


def test_a_long_record_is_decoded_again_a_few_times_and_not_with_every_chunk(path, monkeypatch):
    scanned, decode = [], json.JSONDecoder.raw_decode
    monkeypatch.setattr(files, "CHUNK", 1 << 10)
    monkeypatch.setattr(json.JSONDecoder, "raw_decode",
                        lambda decoder, text, at: scanned.append(len(text) - at) or decode(decoder, text, at))  # fmt: skip
    path.write_text(json.dumps([{"text": "x" * (4 << 20)}, {"text": "y"}]))
    assert len(list(read_json_list(path))) == 2
    assert sum(scanned) < 4 * path.stat().st_size  # decoded with each of its 4096 chunks, it would be 2048 times


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "data.json"
    write_json(path, {"ä": [1, 2.5, None]})
    before = path.read_bytes()

    def failing():
        yield {"id": 0}
        raise RuntimeError("the generator stops")

    with pytest.raises(RuntimeError):
        files.write_json_list(path, failing())
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"score": float("nan")})
    assert path.read_bytes() == before and "ä" in before.decode()
    assert read_json(path) == {"ä": [1, 2.5, None]} and os.listdir(tmp_path) == ["data.json"]
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_replacing_keeps_the_suffix_creates_folders_and_passes_other_errors_on(tmp_path):
    with files.replacing(tmp_path / "a" / "b" / "map.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")
        assert not (tmp_path / "a" / "b" / "map.png").exists()
    assert os.listdir(tmp_path / "a" / "b") == ["map.png"]
    with pytest.raises(FileNotFoundError, match=r"input.png"), files.replacing(tmp_path / "out.png"):
        (tmp_path / "input.png").read_bytes()


def test_a_new_folder_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), new_folder(target) as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    target.mkdir()  # an empty folder is free
    before = os.umask(0o027)
    try:
        with new_folder(target) as folder:
            (folder / "a").touch(mode=0o600)
        assert (target / "a").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["model"] and os.listdir(target) == ["a"]
    with pytest.raises(InputError, match="model"), new_folder(target):
        pass
    with pytest.raises(InputError, match="taken"), new_folder(tmp_path / "taken"):
        (tmp_path / "taken" / "theirs").mkdir(parents=True)  # by another process meanwhile
    assert os.listdir(tmp_path / "taken") == ["theirs"]
    with pytest.raises(InputError, match="large"), new_folder(tmp_path / "large", needed=10**18):
        pass


def test_what_a_killed_process_left_of_a_new_folder_is_removed(tmp_path):
    run_code("with new_folder(path): os.kill(os.getpid(), signal.SIGKILL)", tmp_path / "model").wait()
    assert len(os.listdir(tmp_path)) == 1
    with new_folder(tmp_path / "model"):
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path):
    code = "with replacing(path) as temporary: temporary.touch(); os.kill(os.getpid(), signal.SIGKILL)"
    run_code(code, tmp_path / "a.json").wait()
    assert len(os.listdir(tmp_path)) == 1
    with (
        files.temporary_beside(tmp_path / "c.json", ".spool").open("w"),
        files.replacing(tmp_path / "b.png") as temporary,
    ):
        temporary.touch()
        assert len(os.listdir(tmp_path)) == 2  # those of living processes stay
    assert len(os.listdir(tmp_path)) == 2


def read_ids(path):
    return [record["id"] for _, record in read_jsonl(path, skip_partial_line=True)]


def test_a_cut_at_any_byte_is_repaired(path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 16)  # shorter than a line
    records = [{"id": index, "text": "é [(0.1, 0.2)] {\n}"} for index in range(3)]
    files.write_jsonl(path, records)
    complete = path.read_bytes()
    ends = [index for index, byte in enumerate(complete) if byte == 10]
    for size in range(len(complete) + 1):
        path.write_bytes(complete[:size])
        kept = sum(end <= size for end in ends)  # a record is complete without its newline
        assert read_ids(path) == list(range(kept))
        with JsonlWriter(path) as writer:
            for record in records[kept:]:
                writer.write(record)
        assert path.read_bytes() == complete
    path.write_bytes(complete + b"\0" * 100)  # as a crash may leave it
    JsonlWriter(path).close()
    assert path.read_bytes() == complete


def test_one_writer_at_a_time_and_a_file_of_another_kind_is_not_cut(path):
    with JsonlWriter(path) as writer:
        assert writer.write({"id": 1}) == 0
        with pytest.raises(InputError, match=r"a\.jsonl"):
            JsonlWriter(path)
    with JsonlWriter(path) as writer:
        assert writer.write({"id": 2}) == 10
    assert read_ids(path) == [1, 2]
    path.write_text("my notes\nwithout a last newline")
    with pytest.raises(InputError, match=r"a\.jsonl"):
        JsonlWriter(path)
    assert path.read_text() == "my notes\nwithout a last newline"


def run_code(code, path, **options):
    """Run Python code that imports all of `files` in a process of its own, with `path` as its argument."""
    imports = "import os, signal, sys\nfrom pathlib import Path\nfrom trace_vlm.utils.files import *\n"
    command = [sys.executable, "-c", f"{imports}path = Path(sys.argv[1])\n{code}", str(path)]
    return subprocess.Popen(command, text=True, **options)


def test_a_lock_file_is_held_by_one_process(tmp_path):
    code, path = "with locked(path, 'busy'): pass", tmp_path / "lock"
    with files.locked(path) as held:
        assert held and "InputError: busy" in run_code(code, path, stderr=subprocess.PIPE).communicate()[1]
    assert run_code(code, path).wait() == 0


def test_a_full_disk_leaves_complete_lines(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with JsonlWriter(path) as writer:
        writer.write({"id": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # stands for the full disk
        try:
            with pytest.raises(InputError, match=r"a\.jsonl cannot be written"):
                writer.write({"id": 2, "text": "x" * 1000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.write({"id": 3})
    assert read_ids(path) == [1, 3]


WRITER = """
done = {record["id"] for _, record in read_jsonl(path, skip_partial_line=True)} if path.exists() else set()
with JsonlWriter(path) as writer:
    for number in range(10**9):
        if number not in done:
            writer.write({"id": number, "text": "x" * (1 << 20)})
            print(number, flush=True)
"""


def test_killed_writers_lose_nothing_and_write_nothing_twice(path):
    announced = -1
    for lines in (3, 5, 4):
        process = run_code(WRITER, path, stdout=subprocess.PIPE)
        for _ in range(lines):
            announced = int(process.stdout.readline())
        process.kill()
        process.communicate()
        assert set(range(announced + 1)) <= set(read_ids(path))
    ids = read_ids(path)
    assert ids == list(range(len(ids))) and len(ids) >= 12


def test_a_log_is_created_with_its_first_record(path):
    path.write_text("of an earlier run\n")
    with files.JsonlLog(path) as log:
        assert not path.exists()
        log.write({"id": 1})
    assert read_ids(path) == [1]


def test_an_index_finds_records_by_key_over_blank_lines_and_a_mark(path):
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "n": 1}\n\n{"id": "b", "n": 2}\n{"id": "a", "n": 3}\n{"id": "c", "n')
    with JsonlIndex(path, lambda record, where: hash_key(record["id"])) as index:
        assert len(index) == 2
        assert index.get(hash_key("a")) == {"id": "a", "n": 3}
        assert index.get(hash_key("b")) == {"id": "b", "n": 2}
        assert index.get(hash_key("c")) is None


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../x", "C:/x", "..\\x", "", "a\0"])
def test_names_that_escape_their_folder(name):
    assert files.escapes_folder(name) and not files.escapes_folder("a/b..c.png")
