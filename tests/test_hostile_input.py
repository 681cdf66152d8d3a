"""Hostile input: whatever a text or a file holds, a reader returns a value or raises InputError, after bounded work.

    pytest tests/test_hostile_input.py                                        # some hundred cases a reader, seconds
    pytest -m slow tests/test_hostile_input.py                                # 5,000 a reader, minutes
    TRACE_FUZZ_CASES=200000 pytest -m slow -s tests/test_hostile_input.py      # docs/experiments/2026-11-29-hostile-input.md

A case is a correct text, file or picture with edits: cut, repeated, joined, or with values that are known to hurt. It is
made from its number, which a failure names. No case may take more than two CPU seconds (most take about a millisecond),
and what was accepted is read again as it was written.
"""

import contextlib
import copy
import io
import json
import os
import resource
import shutil
import struct
import tracemalloc
import zlib
from collections import Counter
from dataclasses import astuple
from random import Random

import numpy as np
import pytest
from PIL import Image
from timing import cpu_limit

from trace_vlm.core import conventions
from trace_vlm.core.absence import find_none
from trace_vlm.core.images import decoded_size, image_size, is_turned, open_image, open_mask
from trace_vlm.core.points import LIMIT, find_points, format_points, parse_points
from trace_vlm.core.reasoning import parse, render
from trace_vlm.core.records import answered, read_answers, read_questions, read_samples, write_questions, write_samples
from trace_vlm.eval import make_benchmark, published_benchmarks
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, read_json_list, read_jsonl, write_jsonl
from trace_vlm.utils.jsonl_index import JsonlIndex, hash_key

MANY = int(os.environ.get("TRACE_FUZZ_CASES", 5000))
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of pictures that are large or odd


def few_and_many(few, many=MANY):
    return pytest.mark.parametrize("cases", [few, pytest.param(many, marks=pytest.mark.slow)])


def fuzz(make, check, cases):
    """Check `make(rng)` for so many generators; `check` returns the outcome of a case, which is counted."""
    outcomes = Counter()
    for number in range(cases):
        if number % 10_000 == 0:
            print(number, dict(outcomes), flush=True)
        case = make(Random(number))
        try:
            with cpu_limit(2.0, "it"), contextlib.redirect_stdout(io.StringIO()):
                outcomes[check(case)] += 1
        except BaseException as error:
            error.add_note(f"case {number}: {ascii(case)[:2000]}")
            raise
    print(cases, dict(outcomes))
    return outcomes


def attempt(read, *arguments):
    """What a reader returns, a generator as a list, or its InputError; anything else that it raises fails the test."""
    try:
        value = read(*arguments)
        return list(value) if hasattr(value, "__next__") else value
    except InputError as error:
        return error


def edited(rng, bases, tokens):
    """One of `bases`, texts or bytes, with a few edits, half of them near its beginning."""
    text = rng.choice(bases)
    for _ in range(rng.randint(0, 6)):
        at = rng.randint(0, min(len(text), rng.choice((64, 1 << 20))))
        removed = rng.choice((0, 0, 1, 1, 2, 4, 9, 9, len(text)))
        text = text[:at] + rng.choice(tokens) * rng.randint(0, 3) + text[at + removed :]
    return text


# --- texts ------------------------------------------------------------------------------------------------------------

# fmt: off
TOKENS = [
    *"()[]{},.:;+-eE%`*_\"'<>\\\n \t\0\ufeff\ud800\u0661\u2028\x1c\x85\xa0½é", "\r\n",
    "0.5", "1", "640", "1e999", "-1e-999", "9" * 400,
    "9" * 5000, "NaN", "Infinity", "(0.1, 0.2)", "[1, 2, 3, 4]", "x=", "y: ", "{", "}", '"point_2d": [', "<point x1='5'",
    "</point>", "<points coords='1 1 500 500", "\\left(", "（", "］", "percent", "z=", "and", "None", "none", "nothing",
    "there is no ", "is not ", "cannot find any ", "image", "no-such ", "**Final Answer:**", "Answer is ", "answer",
    "<answer>", "<think>", "</think>", "1. **Identify the reference object:** ", "target area: ", " " * 60, "a" * 60,
    "2) the goal's subtype - ", "generate the output", "**Reasoning Process:**", "left of ", "behind. ", "(" * 60, "the ",
]
STEPS = {"reference": "The mug is at (0.2, 0.3). Left of it stands a can. Behind it is a box.", "target": "Left of it.",
         "subtype": "Free space.", "output": "Two points."}
TEXTS = [
    "", "[(0.461, 0.527), (0.498, 0.521)]", "x=0.46, y=0.53", '{"points": [{"point": [500, 250], "label": "a"}]}',
    "The mug is at (0.5, 0.5).\nFinal answer: (320, 240), then (0.1, 0.2, 0.3, 0.4)", "There is no mug in the image.",
    "<think>(0.1, 0.1)?</think><answer>[0.5, 0.5]</answer>", '<points x1="10.5" y1="20" alt="a">a</points>', "None: no mug.",
    '```json\n[{"bbox_2d": [1, 2, 30, 40]}]\n```', render(STEPS, parse_points("[(0.461, 0.527), (0.1, 0.2, 0.3, 0.4)]")),
    render(STEPS, [], none="there is no mug."),
]
# fmt: on


def make_text(rng):
    kind, size = rng.random(), rng.choice((None, (640, 480), (1, 1)))
    if kind < 0.6:
        return edited(rng, TEXTS, TOKENS), size, kind
    if kind < 0.9:
        return "".join(rng.choices(TOKENS, k=rng.randint(0, 30))), size, kind
    return "".join(chr(rng.randrange(1 << rng.choice((7, 16, 20)))) for _ in range(rng.randint(0, 80))), size, kind


def rounded(items, decimals):
    return [type(item)(*(round(value, decimals) for value in astuple(item))) for item in items]


@few_and_many(400)
def test_points_of_any_text(cases):
    names = list(conventions.CONVENTIONS.values())

    def check(case):
        text, size, kind = case
        mentions = find_points(text, size, depth=kind < 0.3, swapped=kind < 0.3)
        places = [place for mention in mentions for place in (mention.start, mention.end)]
        assert places == sorted(places) and places[:1] >= [0] * len(places[:1]) and places[-1:] <= [len(text)]
        assert all(mention.start < mention.end for mention in mentions)
        items = [mention.item for mention in mentions]
        assert all(abs(value) <= LIMIT for item in items for value in astuple(item))
        assert parse_points(format_points(items, 6)) == rounded(items, 6)
        none = find_none(text)
        assert none is None or 0 <= none[0] < none[1] <= len(text)
        attempt(conventions.read, text, size or (9, 5), names[len(text) % len(names)], size or (9, 5))
        return "points" if items else "none"

    assert len(fuzz(make_text, check, cases)) == 2


@few_and_many(300)
def test_reasoning_of_any_text(cases):
    def check(case):
        text, size, _ = case
        response = parse(text, size)
        for step in response.parts:
            assert step.text in text[slice(*step.span)] and text[slice(*step.span)].startswith(step.heading)
        low, high = response.answer_span or (0, len(text))
        spans = [*response.spans, *filter(None, [response.none_span])]
        assert all(low <= start < end <= high for start, end in spans)
        steps = {step.key: step.text for step in response.steps}
        try:
            again = parse(render(steps, response.points))
        except ValueError:  # a body that holds a heading
            return "no template"
        assert {step.key: step.text for step in again.steps} == {key: body.strip() for key, body in steps.items()}
        assert list(again.points) == rounded(response.points, 3)
        return "steps" if steps else "none"

    assert fuzz(make_text, check, cases)["steps"]


@few_and_many(20, MANY // 20)
def test_work_grows_as_the_text_does(cases):
    """Linear time takes a tenth of a second for these lengths, quadratic several."""

    def make(rng):
        before, unit, behind = ("".join(rng.choices(TOKENS, k=rng.randint(0, 3))) for _ in range(3))
        return before + unit * (40_000 // max(1, len(unit))) + behind

    readers = (
        parse_points,
        find_none,
        parse,
        *(conventions.CONVENTIONS[name].read for name in ("gemini", "molmo", "molmo2")),
    )
    fuzz(make, lambda text: [read(text) for read in readers] and "read", cases)


# --- JSON -------------------------------------------------------------------------------------------------------------

# fmt: off
SAMPLE = {"id": "a", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nPoint."},
          {"from": "gpt", "value": "(0.1, 0.2)"}], "meta": {"task": "free_space"}, "more": [1, 2.5, None]}
QUESTION = {"question_id": 1, "image": "a.png", "text": "Point to the mug.", "category": "seen", "meta": {"count": 2}}
ANSWER = {"question_id": 1, "prompt": "p", "text": "(0.1, 0.2)", "answer_id": "x", "model_id": "m", "confidence": 0.5,
          "seed": 3, "run": 0, "token_ids": [1, 2], "metadata": {}}
EVALUATED = {"doc_id": 0, "filtered_resps": ["(0.1, 0.2)"], "resps": ["(0.1, 0.2)"], "input": "p",
             "doc": {"question_id": 5}, "token_counts": [{"output_tokens": 5}]}
RECORDS = ((SAMPLE, {"id": "b"}), (QUESTION, {"question_id": 2}), (ANSWER, {"run": 1}), (EVALUATED, {"doc_id": 1}))
WEIRD = [None, True, 0, -1, 3, 10**400, -(10**400), 0.5, 1e999, -1e999, float("nan"), "", "a", "1", " ", "\ud800", "\0",
         "../x.png", "/etc/passwd", "a" * 300, "yes", "point", "runs", "none", [], {}, [[]], [{}], {"a": 1}, [1, 2, 3],
         [[0, 0], [1, 1]], json.loads("[" * 400 + "]" * 400), "[(1e999, 0), (0, 0), (1, 1)]",
         "(" * 9999, "[" * 300 + "]" * 300]
BYTES = [*(bytes([value]) for value in b'{}[],:"\\-\0\xff\n '), b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999",
         b"true", b"null", b"9" * 5000, b"\xef\xbb\xbf", b"\r\n", b'"id": 1, ', b'"question_id": "1", ', b"[" * 3000,
         b'{"a":' * 2000, b'"meta": {"a": NaN}, ', b"\xed\xa0\x80"]
GROWING = {"[": b"[", "objects": b'{"a":', "list": b'[{"id":1},', "digits": b"9", "exponent": b"1e9", "NUL": b"\0",
           "blank": b" ", "lines": b"{}\n", "quotes": b'"', "escapes": b"\\u0041", "mark": b"\xef\xbb\xbf", "zeros": b"[0,"}
# fmt: on


def inner_paths(value, path=()):
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from ((*path, key), *inner_paths(one, (*path, key)))


def altered(rng, document):
    """A JSON value with up to three of its values, at any depth, replaced."""
    made, paths = copy.deepcopy(document), list(inner_paths(document))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        *path, last = rng.choice(paths)
        with contextlib.suppress(LookupError, TypeError):  # inside of what was replaced
            inner = made
            for key in path:
                inner = inner[key]
            inner[last] = copy.deepcopy(rng.choice(WEIRD))
    return made


def as_lines(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def make_json(rng):
    (record, change), form = rng.choice(RECORDS), rng.choice((as_lines, lambda records: json.dumps(records).encode()))
    if rng.random() < 0.5:
        return edited(rng, [form([record, {**record, **change}])], BYTES)
    return form([altered(rng, one) for one in (record, {**record, **change})])


def read_index(path):
    with JsonlIndex(path, lambda record, where: hash_key(record.get("id"))) as index:
        return index.get(hash_key("a"))


@few_and_many(300)
def test_json_of_any_bytes(tmp_path, cases):
    path, copied = tmp_path / "data.jsonl", tmp_path / "copy.json"
    writers = {read_samples: write_samples, read_questions: write_questions,
               read_answers: lambda path, answers: write_jsonl(path, (answer.as_json() for answer in answers))}  # fmt: skip

    def check(content):
        path.write_bytes(content)
        for read in (read_json, read_jsonl, read_json_list, answered, read_index):
            attempt(read, path)
        kinds = set()
        for read, write in writers.items():
            records = attempt(read, path)
            if not isinstance(records, InputError):
                kinds.add(read.__name__)
                if attempt(write, copied, records) is None:  # not NaN, which JSON does not have
                    again = attempt(read, copied)  # half a character was replaced
                    write(copied, again)
                    assert attempt(read, copied) == again and (again == records or b"\\ud" in content)
        return "+".join(sorted(kinds))

    assert len(fuzz(make_json, check, cases)) > 3


@pytest.mark.parametrize("unit", GROWING.values(), ids=GROWING)
@pytest.mark.parametrize("before", [b"", b'[{"id": ', b'{"id": "'], ids=["alone", "in a list", "in a text"])
def test_memory_and_work_stay_near_the_length_of_a_file(tmp_path, before, unit):
    path, content = tmp_path / "a.jsonl", before + unit * ((1 << 15) // len(unit))
    path.write_bytes(content)
    tracemalloc.start()
    with cpu_limit(5.0, f"{len(content)} bytes"):
        for read in (read_json, read_jsonl, read_samples, read_questions):
            attempt(read, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * len(content) + (1 << 20)


# --- benchmarks -------------------------------------------------------------------------------------------------------


def picture_bytes(mode="RGB", size=(8, 6), format="PNG", fill=None, **options):
    pixels = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), np.uint8) // 8 * 8
    picture, file = Image.fromarray(pixels).convert(mode) if fill is None else Image.new(mode, size, fill), io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


PICTURE, MASK, SECRET = picture_bytes(), picture_bytes("L", fill=255), picture_bytes(fill=(250, 0, 250))
# fmt: off
DOCUMENTS = {
    "labelme": {"imagePath": "a.png", "imageWidth": 8, "imageHeight": 6, "shapes": [
        {"label": "mug", "shape_type": "polygon", "points": [[0, 0], [6, 0], [6, 5]]},
        {"label": "can", "shape_type": "rectangle", "points": [[1, 1], [4, 4]]}]},
    "coco": {"categories": [{"id": 1, "name": "mug"}], "images": [{"id": 5, "file_name": "a.png", "width": 8, "height": 6}],
             "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "segmentation": [[0, 0, 6, 0, 6, 5]]},
                             {"id": 2, "image_id": 5, "category_id": 1, "bbox": [1, 1, 3, 3]}]},
    "point-bench": [{"image_filename": "a.png", "mask_filename": "a.png", "user_input": "Point.", "category": "counting",
                     "count": 2}],
    "roborefit": [{"num": number, "text": "mug", "rgb_path": "x/image/a.png", "mask_path": "x\\mask\\a.png"}
                  for number in (1, 2)],
    "robospatial": [{"category": "context", "question": "Where?", "answer": "[(0.1, 0.1), (0.9, 0.1), (0.5, 0.9)]"},
                    {"category": "fit", "question": "Is it? Answer yes or no.", "answer": "yes"}],
    "where2place": [{"question_id": 4, "question": "Point.", "question_type": "seen"}],
}
COLUMNS = {"robospatial": {"img": PICTURE, "mask": MASK}, "where2place": {"image": PICTURE, "mask": MASK}}
CSV = ("id,image,instruction,kind,category,x,y\n,a.png,Point.,,cups,0.5,0.5\n"
       "two,a.png,Point.,box,,0.7,0.5\ntwo,a.png,Point.,box,,0.2,0\n")
CELLS = [*",\"\n\0.;-/é\ufeff", "\r\n", "0.5", "1e999", "nan", "9" * 5000, "polygon", "none", "runs", "../x.png", "a.png",
         "a" * 300, "id", "x_px"]
SUITE = {"name": "n", "note": "", "masks": "question", "rule": "first point"}
# fmt: on


def make_files(rng):
    """A kind of input, and the content of its files."""
    kind = rng.choice((*["own"] * 6, "csv", *DOCUMENTS))
    if kind == "own":
        lines = as_lines([altered(rng, {**QUESTION, "question_id": number}) for number in range(rng.randint(1, 2))])
        lines = lines if rng.random() < 0.7 else edited(rng, [lines], BYTES)
        return kind, (lines, json.dumps(altered(rng, SUITE)), rng.choice(["1.png", "01.png", "a.jpg", "²1.png"]))
    return kind, edited(rng, [CSV], CELLS) if kind == "csv" else altered(rng, DOCUMENTS[kind])


@few_and_many(100)
def test_benchmarks_of_any_files(tmp_path, monkeypatch, cases):
    """Their own folders, annotations of which one is made, and the published files: nothing outside of them is read."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(make_benchmark, "draw_contact_sheet", lambda *tiles: None)  # its fonts take most of the time
    own, source, out, table = (tmp_path / name for name in ("own", "source", "out", "a.parquet"))
    for name in ("own/images", "own/masks", "source/image", "source/mask", "source/selected_images/counting",
                 "source/selected_masks/counting"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(MASK if "mask" in name else PICTURE)
    for folder in (tmp_path, own):
        (folder / "x.png").write_bytes(SECRET)

    def read(folder):
        benchmark = open_benchmark(folder)
        attempt(benchmark.image_identities)
        for question in benchmark.questions:
            path, region = attempt(benchmark.image_path, question), attempt(benchmark.region, question)
            assert isinstance(path, InputError) or path.read_bytes() != SECRET
            assert region is None or isinstance(region, InputError) or region.shape == (6, 8)
        return len(benchmark.questions)

    def convert(kind, content):
        if kind == "own":
            (own / "point_questions.jsonl").write_bytes(content[0])
            (own / "suite.json").write_text(content[1])
            next((own / "masks").iterdir()).rename(own / "masks" / content[2])
            return read(own)
        if kind in ("csv", "labelme", "coco"):
            file = tmp_path / ("a.csv" if kind == "csv" else "a.json")
            file.write_text(content if kind == "csv" else json.dumps(content), errors="surrogatepass")
            return make_benchmark.main([str(file), "--images", str(own / "images"), "--out", str(out)])
        (source / "data.json").write_text(json.dumps(content))
        if columns := COLUMNS.get(kind):
            try:
                rows = [{**row, **columns} for row in content if isinstance(row, dict)]
                parquet.write_table(pyarrow.Table.from_pylist(rows), table)
            except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
                raise InputError("no parquet file can hold this") from None
        name, place = ("where2place", table) if columns else (kind, source)
        return published_benchmarks.main([name, "--from", str(place), "--out", str(out)])

    def check(case):
        done = attempt(convert, *case)
        if out.exists():
            assert done == 0 and read(out) > 0
            assert all(path.read_bytes() != SECRET for path in (out / "images").iterdir())
            shutil.rmtree(out)
        return f"{case[0]} {'refused' if isinstance(done, InputError) else 'read'}"

    assert len(fuzz(make_files, check, cases)) >= 14


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures():
    exif, frames = {}, [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    for orientation in (5, 6, 8):
        exif[orientation] = Image.Exif()
        exif[orientation][0x112] = orientation
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield picture_bytes(mode)
    yield from (picture_bytes("I;16", fill=9), picture_bytes("P", transparency=3), picture_bytes(exif=exif[6]))
    yield picture_bytes("RGBA", format="WEBP", lossless=True, exif=exif[5])
    for mode in ("L", "RGB", "CMYK"):
        yield picture_bytes(mode, (16, 16), "JPEG", exif=exif[8], progressive=mode == "L")
    for format in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):  # animated, or of several pages
        frames[0].save(file := io.BytesIO(), format, save_all=True, append_images=frames[1:])
        yield file.getvalue()
    yield from (picture_bytes(mode, format="BMP") for mode in ("1", "L", "P", "RGB"))
    for mode, compression in (("1", "group4"), ("L", "packbits"), ("RGB", "tiff_lzw"), ("RGB", "tiff_adobe_deflate"),
                              ("F", None), ("CMYK", None), ("RGB", "jpeg"), ("LAB", None), ("I;16", None)):  # fmt: skip
        yield picture_bytes(mode, (16, 16), "TIFF", 0 if mode in ("LAB", "I;16") else None, compression=compression)
    yield from (picture_bytes(format=format) for format in ("PPM", "ICO", "TGA"))
    yield b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


CHUNKS = [bytes([value]) for value in (0, 1, 2, 3, 4, 6, 8, 16, 32, 127, 128, 255)]
CHUNKS += [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xe1",
           b"\xff\xc2\0\x11", b"Exif\0\0MM\0*", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"IDAT", b"IEND", b"acTL", b"tRNS",
           b"zTXt", b"PLTE", b"\x12\x01\x03\0", b"RIFF", b"ANIM", b"II*\0", b"GIF89a", b"\xfd\xff"]  # fmt: skip


def with_checksums(content):
    """A PNG whose chunks have the checksums of what they hold, as far as its chunks can be followed."""
    made, at = content[:8], 8
    while at + 12 <= len(content):
        end = min(at + 8 + struct.unpack(">I", content[at : at + 4])[0], len(content) - 4)
        made += content[at:end] + struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return made + content[at:]


@few_and_many(300)
def test_pictures_of_any_bytes(tmp_path, monkeypatch, cases):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 18)  # so that no case takes long
    path, copied, bases = tmp_path / "a.png", tmp_path / "copy.png", list(pictures())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def make(rng):
        content = edited(rng, bases, CHUNKS)
        return with_checksums(content) if content.startswith(b"\x89PNG") and rng.random() < 0.7 else content

    def check(content):
        path.write_bytes(content)
        picture, mask, size, turned = (attempt(read, path) for read in (open_image, open_mask, image_size, is_turned))
        decoded = decoded_size(path)
        if isinstance(picture, InputError):
            return "mask only" if isinstance(mask, np.ndarray) else "refused"
        assert picture.mode == "RGB" and picture.size == size and 0 < size[0] * size[1] <= 1 << 19
        assert turned in (True, False) and (isinstance(decoded, str) or decoded == size)
        assert isinstance(mask, InputError) or (mask.dtype == np.uint8 and mask.shape == size[::-1])
        picture.save(copied, compress_level=1)
        assert np.array_equal(np.asarray(open_image(copied)), np.asarray(picture))
        return "read"

    outcomes = fuzz(make, check, cases)
    assert min(outcomes["read"], outcomes["refused"]) > cases // 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10  # KiB
