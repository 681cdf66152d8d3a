"""Training records on disk: a JSON file becomes token ids in an Arrow file once, and every process maps that file.

A training JSON of 1.4 million conversations does not fit into the memory of eight processes with twelve workers each.
The first process that asks tokenises it into `CACHE/CONTENT_HASH.arrow`; all others wait, and then share the pages.
The name is made of the content of the data, the tokenizer and the template, so a changed file is converted anew and
an unchanged one never. `TRACE_CACHE` moves the folder (default ~/.cache/trace-vlm).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from ..core.prompts import IGNORE, IMAGE_ID, Encoded, Rendered, Template, encode, render
from ..core.reasoning import parse
from ..core.records import Sample, read_samples
from ..utils.command import InputError, output_folder
from ..utils.files import locked, read_json, replacing, sha256, write_json
from ..utils.parallel import Pool, WorkerDied

FORMAT = 1  # raised when what is written changes
ROWS = 512  # records a batch of the file: what is parsed to reach one of them
PARALLEL_ABOVE = 20 << 20  # bytes of a data file from which several processes tokenise
MAX_WORKERS = 16
KINDS = ("text", "reasoning", "answer")  # what a learned token belongs to; final coordinates are "answer"
TASKS = ("other", "object_reference", "free_space")  # of `Sample.task`
# A coordinate pair as our own texts write it; what is guided are the tokens between its parentheses.
COORDINATES = re.compile(r"\((\d*\.\d+), (\d*\.\d+)\)")

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.string(),
        "instances": pa.string(),
        "task": pa.int32(),
        "tokens": pa.int32(),
        "ids": pa.list_(pa.int32()),
        "learned": pa.list_(pa.int32()),
        "guides": pa.list_(pa.float64()),
    }
)


@dataclass(frozen=True, slots=True)
class Record:
    """One encoded sample; the image is a single `IMAGE_ID` among the ids."""

    id: str
    image: str | None
    instances: str | None
    task: int  # index into TASKS
    ids: NDArray[np.int32]
    learned: NDArray[np.int32]  # [stretches, 3]: first token, one past the last, index into KINDS
    guides: NDArray[np.float64]  # [guides, 4]: first token, one past the last, x, y

    @property
    def start(self) -> int:
        """The first token behind the image, 0 for a text."""
        return 0 if self.image is None else int(np.argmax(self.ids == IMAGE_ID)) + 1


class Records:
    """The records of one Arrow file, mapped: pages are read when they are touched, and shared between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: Any = None
        self._batch: tuple[int, Any] = (-1, None)
        reader = self._open()
        self._rows = sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))

    def __getstate__(self) -> dict[str, Any]:  # a worker opens the file for itself
        return {**self.__dict__, "_reader": None, "_batch": (-1, None)}

    def __len__(self) -> int:
        return self._rows

    def column(self, name: str) -> NDArray[np.int32]:
        """A column of whole numbers (`tokens`, `task`), copied."""
        reader = self._open()
        parts = [reader.get_batch(index).column(name).to_numpy() for index in range(reader.num_record_batches)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def with_image(self) -> NDArray[np.bool_]:
        reader = self._open()
        batches = range(reader.num_record_batches)
        parts = [reader.get_batch(index).column("image").is_valid().to_numpy(False) for index in batches]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def __getitem__(self, index: int) -> Record:
        number, row = divmod(index, ROWS)
        if self._batch[0] != number:
            self._batch = (number, self._open().get_batch(number))
        batch = self._batch[1]
        text = {name: batch.column(name)[row].as_py() for name in ("id", "image", "instances", "task")}
        return Record(
            **text,
            ids=_values(batch, "ids", row),
            learned=_values(batch, "learned", row).reshape(-1, 3),
            guides=_values(batch, "guides", row).reshape(-1, 4),
        )

    def _open(self) -> Any:
        if self._reader is None:
            self._reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        return self._reader


def _values(batch: Any, name: str, row: int) -> NDArray[Any]:
    column = batch.column(name)
    start, end = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    return column.values.slice(start, end - start).to_numpy()


# --- conversion -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    return Path(os.environ.get("TRACE_CACHE") or Path.home() / ".cache" / "trace-vlm")


def open_records(path: str | Path, tokenizer: Any, style: Template) -> Records:
    """The records of a JSON or JSONL file, tokenised on the first call and mapped from then on.

    Processes that ask at the same time wait for the one that converts; killed, the next one begins again.

    Raises:
        InputError: a file or a sample that cannot be used, with its id.
    """
    path = Path(path)
    cache = output_folder(cache_folder())
    with locked(cache / "converting.lock") as alone:
        name = hashlib.sha256("|".join([str(FORMAT), _content(path, cache), _voice(tokenizer, style)]).encode())
        target = cache / f"{name.hexdigest()[:32]}.arrow"
        found = _whole(target)
        if found is None:
            for left in cache.glob(".*.tmp.arrow") if alone else ():  # by a conversion that was killed
                left.unlink(missing_ok=True)
            with replacing(target) as temporary:
                _convert(path, temporary, tokenizer, style)
            found = Records(target)
    return found


def _whole(path: Path) -> Records | None:
    try:
        return Records(path)
    except (OSError, pa.ArrowInvalid):  # not there, or cut off, by a full disk perhaps
        return None


def _voice(tokenizer: Any, style: Template) -> str:
    """What the token ids depend on besides the text."""
    written = f"{tokenizer.backend_tokenizer.to_str()}|{tokenizer.bos_token_id}|{style}"
    return hashlib.sha256(written.encode()).hexdigest()


def _content(path: Path, cache: Path) -> str:
    """The file's hash; remembered under its size and time, so that a big file is not read by every process."""
    stat = path.stat()
    seen = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    note = cache / f"{hashlib.sha256(seen.encode()).hexdigest()[:32]}.json"
    try:
        return str(read_json(note)["sha256"])
    except (InputError, KeyError, TypeError):  # not there, or broken
        pass
    found = sha256(path)
    write_json(note, {"file": str(path.resolve()), "sha256": found})
    return found


def _convert(path: Path, target: Path, tokenizer: Any, style: Template) -> None:
    workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    parallel = workers > 1 and path.stat().st_size > PARALLEL_ABOVE
    with ExitStack() as stack:
        if parallel:
            batches: Iterator[Any] = stack.enter_context(closing(_encoded_by(workers, path, tokenizer, style)))
        else:
            batches = (_encode_chunk(tokenizer, style, chunk) for chunk in _chunks(read_samples(path)))
        file = stack.enter_context(pa.OSFile(str(target), "wb"))
        writer = stack.enter_context(pa.ipc.new_file(file, SCHEMA))
        bar = stack.enter_context(tqdm(desc=f"tokenise {path.name}", unit=" samples", leave=False))
        for batch in batches:
            if isinstance(batch, str):
                raise InputError(f"{path}, {batch}")
            writer.write_batch(batch)
            bar.update(batch.num_rows)


def _encoded_by(workers: int, path: Path, tokenizer: Any, style: Template) -> Generator[Any, None, None]:
    """Every chunk of a file encoded, in order, by processes of their own."""
    with Pool(workers, partial, _encode_chunk, tokenizer, style) as pool:
        first = 0
        for chunk, batch in pool.in_order(_chunks(read_samples(path))):
            try:
                yield batch.result()
            except WorkerDied as error:
                last = first + len(chunk) - 1
                raise WorkerDied(f"{path}, samples {first} to {last} could not be tokenised: {error}") from None
            first += len(chunk)


def _chunks(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while chunk := list(islice(samples, ROWS)):
        yield chunk


def _encode_chunk(tokenizer: Any, style: Template, samples: Sequence[Sample]) -> Any:
    """A record batch, or what is wrong with the first sample that cannot be used."""
    rows = []
    for sample in samples:
        try:
            rows.append(_row(sample, tokenizer, style))
        except InputError as error:
            return f"sample {sample.id}: {error}"
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _row(sample: Sample, tokenizer: Any, style: Template) -> dict[str, Any]:
    rendered = render(sample.conversations, style)
    encoded = encode(tokenizer, rendered)
    images = encoded.input_ids.count(IMAGE_ID)
    if images != (sample.image is not None):
        raise InputError(f"{images} <image> tags for {int(sample.image is not None)} images")
    learned = [number for stretch in _learned(encoded, rendered) for number in stretch]
    if not learned:
        raise InputError("no turn by gpt that could be learned")
    return {
        "id": sample.id,
        "image": sample.image,
        "instances": sample.meta.get("instances"),
        "task": TASKS.index(sample.task or "other"),
        "tokens": len(encoded.input_ids),
        "ids": encoded.input_ids,
        "learned": learned,
        "guides": [number for guide in _guides(encoded, rendered.text) for number in guide],
    }


def _learned(encoded: Encoded, rendered: Rendered) -> Iterator[tuple[int, int, int]]:
    """Stretches of learned tokens of one kind: (first, one past the last, index into KINDS)."""
    kinds = np.full(len(encoded.labels), -1)
    for start, end in rendered.answers:
        response = parse(rendered.text[start:end])
        final = start + response.answer_span[0] if response.answer_span else (start if response.points else end)
        before = KINDS.index("reasoning" if response.steps else "text")
        for token, (begin, stop) in enumerate(encoded.spans):
            if encoded.labels[token] != IGNORE and start <= begin < end:
                kinds[token] = before if stop <= final else KINDS.index("answer")
    edges = np.flatnonzero(np.diff(kinds, prepend=-2, append=-2))
    for first, last in zip(edges, edges[1:], strict=False):
        if kinds[first] >= 0:
            yield int(first), int(last), int(kinds[first])


def _guides(encoded: Encoded, text: str) -> Iterator[tuple[float, float, float, float]]:
    """The rows that predict a learned coordinate's digits: for `(0.46, 0.52)` those of `(0.`, 4, 6, `, 0.` and 5."""
    for match in COORDINATES.finditer(text):
        inside = [
            token - 1
            for token, (begin, _) in enumerate(encoded.spans)
            if match.start() < begin < match.end() - 1 and encoded.labels[token] != IGNORE
        ]
        if inside:
            yield inside[0], inside[-1] + 1, float(match[1]), float(match[2])
