"""Training data as token ids: a JSON file is tokenized once into an Arrow file, which every process maps.

A JSON of 1.4 million conversations does not fit into the memory of eight processes with twelve workers each. The first
process that opens a file writes `CACHE/HASH.arrow`; the others wait, and all share its pages. The hash covers the data,
the tokenizer and the template. `TRACE_CACHE` moves the folder (default ~/.cache/trace-vlm). Where a processor decides
what an image becomes, entries hold the conversation's text and its number of tokens, and rows are made when needed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from ..core.images import Images, image_size
from ..core.prompts import IGNORE, IMAGE_ID, IMAGE_TAG, Encoded, Rendered, Template, encode, render
from ..core.reasoning import parse
from ..core.records import Sample, Turn, read_samples
from ..utils.command import InputError, output_folder
from ..utils.files import locked, read_json, replacing, sha256, write_json
from ..utils.parallel import Pool, WorkerDied

FORMAT = 1  # raised when the content of the Arrow file changes
ROWS = 512  # samples a record batch: what is parsed to reach one of them
PARALLEL_ABOVE = 20 << 20  # bytes of a data file from which several processes tokenize
MAX_WORKERS = 16
BLANK_SIZE = (640, 480)  # of the picture that stands for one that cannot be read
KINDS = ("text", "reasoning", "answer")  # what a labelled token belongs to; final coordinates are "answer"
TASKS = ("other", "object_reference", "free_space")  # of `Sample.task`
# A coordinate pair as our own texts write it; the tokens between its parentheses are guided.
COORDINATES = re.compile(r"\((\d*\.\d+), (\d*\.\d+)\)")

TEXT = {name: pa.string() for name in ("id", "image", "instances")}
NUMBERS = {name: pa.int32() for name in ("task", "tokens")}
LISTS = {"ids": pa.list_(pa.int32()), "learned": pa.list_(pa.int32()), "guides": pa.list_(pa.float64())}
SCHEMA = pa.schema(TEXT | NUMBERS | LISTS)
CONVERSATIONS = pa.schema(TEXT | NUMBERS | {"turns": pa.list_(pa.string())})


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample as token ids; its image is a single `IMAGE_ID` among them."""

    id: str
    image: str | None
    instances: str | None
    task: int  # index into TASKS
    ids: NDArray[np.int32]
    learned: NDArray[np.int32]  # [spans, 3]: first token, one past the last, index into KINDS
    guides: NDArray[np.float64]  # [guides, 4]: first token, one past the last, x, y

    @property
    def start(self) -> int:
        """The first token after the image, 0 without an image."""
        return 0 if self.image is None else int(np.argmax(self.ids == IMAGE_ID)) + 1

    @property
    def reasons(self) -> bool:
        return bool((self.learned[:, 2] == KINDS.index("reasoning")).any())


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row as text: a sample, or its turns up to one of its answers."""

    id: str
    image: str | None
    instances: None
    task: int  # index into TASKS
    turns: tuple[Turn, ...]

    @property
    def reasons(self) -> bool:
        return bool(parse(self.turns[-1].text).steps)


class TokenCache:
    """The samples of one Arrow file, memory-mapped: pages are read on access and shared between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._batch: tuple[int, Any] = (-1, None)
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches())])

    def __getstate__(self) -> dict[str, Any]:  # a worker opens the file by itself
        return {"path": self.path, "_batch": (-1, None), "_starts": self._starts}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def _reader(self) -> Any:
        return pa.ipc.open_file(pa.memory_map(str(self.path)))

    def _batches(self) -> Iterator[Any]:
        return map(self._reader.get_batch, range(self._reader.num_record_batches))

    def lengths(self) -> NDArray[np.int32]:
        """Return the tokens of every entry, `[entries]`: of an `EncodedSample` with its image as one."""
        columns = (batch.column("tokens").to_numpy() for batch in self._batches())
        return np.concatenate([np.zeros(0, np.int32), *columns])

    def has_image(self) -> NDArray[np.bool_]:
        """Return for every entry whether it has an image; `[entries]`."""
        columns = (batch.column("image").is_valid().to_numpy(False) for batch in self._batches())
        return np.concatenate([np.zeros(0, bool), *columns])

    def __getitem__(self, index: int) -> EncodedSample | Conversation:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[number])
        if self._batch[0] != number:
            self._batch = (number, self._reader.get_batch(number))
        batch = self._batch[1]

        def values(name: str) -> NDArray[Any]:
            column = batch.column(name)
            start, end = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
            return column.values.slice(start, end - start).to_numpy()  # type: ignore[no-any-return]

        scalars = {name: batch.column(name)[row].as_py() for name in (*TEXT, "task")}
        if "turns" in batch.schema.names:
            texts = enumerate(batch.column("turns")[row].as_py())
            return Conversation(**scalars, turns=tuple(Turn(("human", "gpt")[n % 2], text) for n, text in texts))
        learned, guides = values("learned").reshape(-1, 3), values("guides").reshape(-1, 4)
        return EncodedSample(**scalars, ids=values("ids"), learned=learned, guides=guides)


@dataclass(frozen=True)
class TokenEncoder:
    """Make a sample's `EncodedSample`, as a row of the file."""

    tokenizer: Any
    style: Template
    schema = SCHEMA

    @property
    def key(self) -> str:
        return f"{self.tokenizer.backend_tokenizer.to_str()}|{self.tokenizer.bos_token_id}|{self.style}"

    def __call__(self, sample: Sample) -> list[dict[str, Any]]:
        rendered = render(sample.conversations, self.style)
        encoded = encode(self.tokenizer, rendered)
        _check_images(sample, encoded.input_ids.count(IMAGE_ID))
        learned = list(chain.from_iterable(learned_spans(encoded, rendered)))
        if not learned:
            raise InputError("no turn by gpt to learn from")
        return [{
            "id": sample.id, "image": sample.image, "instances": sample.meta.get("instances"), "learned": learned,
            "task": TASKS.index(sample.task or "other"), "tokens": len(encoded.input_ids), "ids": encoded.input_ids,
            "guides": list(chain.from_iterable(_guides(encoded, rendered.text))),
        }]  # fmt: skip


@dataclass(frozen=True)
class ConversationEncoder:
    """Make the `Conversation`s of a sample, with the number of tokens that the checkpoint's processor makes of each."""

    checkpoint: Any  # of models.families.any
    images: Images
    schema = CONVERSATIONS

    def __reduce__(self) -> Any:  # a worker opens the processor by itself, and no weights
        return _reopen, (self.checkpoint.folder, self.checkpoint.coordinates, self.images)

    @property
    def key(self) -> str:
        processor, tokenizer = self.checkpoint.processor, self.checkpoint.tokenizer.backend_tokenizer.to_str()
        settings = (processor.to_json_string(), processor.image_processor.to_json_string(), processor.chat_template)
        return "|".join(map(str, (tokenizer, *settings, self.checkpoint.end_ids, self.checkpoint.coordinates,
                                  self.images.folder.resolve())))  # fmt: skip

    def __call__(self, sample: Sample) -> list[dict[str, Any]]:
        _check_images(sample, sum(turn.text.count(IMAGE_TAG) for turn in sample.conversations))
        row = {"id": sample.id, "task": TASKS.index(sample.task or "other")}
        size, rows = None if sample.image is None else self._size(sample.image), []
        for turns in self.checkpoint.learned_conversations(sample.conversations):
            seen = any(IMAGE_TAG in turn.text for turn in turns)
            tokens = self.checkpoint.length(turns, size if seen else None)
            image, texts = sample.image if seen else None, [turn.text for turn in turns]
            rows.append(row | {"image": image, "tokens": tokens, "turns": texts})
        return rows

    def _size(self, name: str) -> tuple[int, int]:
        try:
            return image_size(self.images.path(name))
        except InputError:  # nothing is learned from this row
            return BLANK_SIZE


def _reopen(folder: Path, coordinates: str, images: Images) -> ConversationEncoder:
    from ..model.families.any import without_weights

    return ConversationEncoder(replace(without_weights(folder), coordinates=coordinates), images)


def _check_images(sample: Sample, tags: int) -> None:
    if tags != (expected := int(sample.image is not None)):
        raise InputError(f"{tags} <image> tags for {expected} images")


def open_cache(path: str | Path, encoder: TokenEncoder | ConversationEncoder) -> TokenCache:
    """Map the samples of a JSON or JSONL file, encoding the file on the first call.

    Processes that call at the same time wait for the one that tokenizes; if it is killed, the next one starts again.
    InputError names a file or a sample that cannot be used.
    """
    path, cache = Path(path), output_folder(Path(os.environ.get("TRACE_CACHE") or Path.home() / ".cache" / "trace-vlm"))
    with locked(cache / "converting.lock") as exclusive:
        parts = [str(FORMAT), _content_hash(path, cache), _hash(encoder.key)]
        target = cache / f"{_hash('|'.join(parts))[:32]}.arrow"
        try:
            return TokenCache(target)
        except (OSError, pa.ArrowInvalid):  # it does not exist, or was cut off by a full disk
            pass
        for leftover in cache.glob(".*.tmp.arrow") if exclusive else ():  # of a process that was killed
            leftover.unlink(missing_ok=True)
        parallel = path.stat().st_size > PARALLEL_ABOVE
        workers = min(MAX_WORKERS, len(os.sched_getaffinity(0))) if parallel else 1
        with (
            replacing(target) as temporary,
            closing(encode_file(path, encoder, workers)) as batches,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, encoder.schema) as writer,
        ):
            for batch in tqdm(batches, desc=f"tokenize {path.name}", unit=f" x {ROWS} samples", leave=False):
                writer.write_batch(batch)
        return TokenCache(target)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content_hash(path: Path, cache: Path) -> str:
    """The file's hash, stored under its size and time, so that not every process reads a big file."""
    stat = path.stat()
    note = cache / f"{_hash(f'{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}')[:32]}.json"
    try:
        return str(read_json(note)["sha256"])
    except (InputError, KeyError, TypeError):  # it does not exist, or is broken
        digest = sha256(path)
        write_json(note, {"file": str(path.resolve()), "sha256": digest})
        return digest


def encode_file(
    path: Path, encoder: TokenEncoder | ConversationEncoder, workers: int = 1
) -> Generator[Any, None, None]:
    """Yield the record batches of a file, in order, encoded here or by several worker processes."""
    samples = read_samples(path)
    chunks = iter(lambda: list(islice(samples, ROWS)), [])
    if workers == 1:
        yield from (encode_chunk(path, encoder, chunk) for chunk in chunks)
        return
    first = 0
    with Pool(workers, partial, encode_chunk, path, encoder) as pool:
        for chunk, batch in pool.in_order(chunks):
            try:
                yield batch.result()
            except WorkerDied as error:
                last = first + len(chunk) - 1
                raise WorkerDied(f"samples {first} to {last} of {path} cannot be tokenized: {error}") from None
            first += len(chunk)


def encode_chunk(path: Path, encoder: TokenEncoder | ConversationEncoder, samples: Sequence[Sample]) -> Any:
    """Return a record batch; InputError names the first sample that cannot be used."""
    rows = []
    for sample in samples:
        try:
            rows += encoder(sample)
        except InputError as error:
            raise InputError(f"{path}, sample {sample.id}: {error}") from None
    return pa.RecordBatch.from_pylist(rows, schema=encoder.schema)


def learned_spans(encoded: Encoded, rendered: Rendered) -> Iterator[tuple[int, int, int]]:
    """Spans of labelled tokens of one kind: (first, one past the last, index into KINDS)."""
    kinds = np.full(len(encoded.labels), -1)
    for start, end in rendered.answers:
        response = parse(rendered.text[start:end])
        final = start + response.answer_span[0] if response.answer_span else (start if response.parsable else end)
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
            token - 1 for token, (begin, _) in enumerate(encoded.spans) if match.start() < begin < match.end() - 1
        ]
        inside = [row for row in inside if encoded.labels[row + 1] != IGNORE]
        if inside:
            yield inside[0], inside[-1] + 1, float(match[1]), float(match[2])
