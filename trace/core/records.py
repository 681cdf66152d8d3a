"""Records and their files: samples (LLaVA's JSON list, or JSONL), questions and answers (JSONL, as of Where2Place)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from ..utils.command import InputError, existing_file
from ..utils.files import first_character, json_type, read_json_list, read_jsonl, write_json_list, write_jsonl

T = TypeVar("T")
Speaker = Literal["human", "gpt"]
FINISHED_AT_LIMIT = ("length", "max_tokens")  # how servers and `model_vqa` say that an answer reached its last token
QuestionId = int | str
TASKS = ("object_reference", "free_space")
# The generator's kinds of question, and the folders of RoboPoint's images, whose records name no task.
_TASK_OF = dict.fromkeys(("direct", "relational", "object_ref"), "object_reference")
_TASK_OF |= dict.fromkeys(("free", "between", "part", "region_ref"), "free_space")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; the text of the first human turn holds `<image>` when the sample has an image."""

    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One training conversation, in LLaVA's JSON; `meta` holds what training ignores and reasoners use."""

    id: str
    image: str | None
    conversations: tuple[Turn, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str | None:
        """One of `TASKS`, by `meta` or by RoboPoint's folders; None where neither names it."""
        task = self.meta.get("task")
        if task in TASKS:
            return str(task)
        if self.image is None:
            return None
        names = [part for name in (self.id, self.image) for part in name.split("/")[:-1]]
        return next((_TASK_OF[name] for name in (str(self.meta.get("kind")), *names) if name in _TASK_OF), None)

    def as_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"id": self.id}
        if self.image is not None:  # LLaVA tells text-only samples by the missing key
            record["image"] = self.image
        record["conversations"] = [{"from": turn.speaker, "value": turn.text} for turn in self.conversations]
        if self.meta:
            record["meta"] = dict(self.meta)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Sample:
        """Read a record; unknown keys go to `meta`. InputError, beginning with `where`, for a missing or wrong field."""
        identifier, image = _field(record, "id", _ID, where), _field(record, "image", str, where, optional=True)
        conversations = _field(record, "conversations", list, where)
        if not conversations:
            raise InputError(f'{where}: "conversations" must hold at least one turn')
        turns = []
        for number, turn in enumerate(conversations, start=1):
            at = f"{where}, turn {number}"
            if not isinstance(turn, dict):
                raise InputError(f"{at} must be a JSON object, not {json_type(turn)}")
            speaker = _field(turn, "from", str, at)
            if speaker not in ("human", "gpt"):
                raise InputError(f'{at}: "from" must be "human" or "gpt", not {speaker!r}')
            turns.append(Turn(cast(Speaker, speaker), _field(turn, "value", str, at)))
        return cls(str(identifier), image, tuple(turns), _meta(record, "meta", ("id", "image", "conversations"), where))


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark, as Where2Place writes it; `image` is a file name inside the image folder."""

    question_id: QuestionId
    image: str
    text: str
    category: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"question_id": self.question_id, "image": self.image, "text": self.text}
        if self.category is not None:
            record["category"] = self.category
        if self.meta:
            record["meta"] = dict(self.meta)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Question:
        """Read a record; unknown keys go to `meta`. InputError, beginning with `where`, for a missing or wrong field."""
        return cls(
            _field(record, "question_id", _ID, where),
            _field(record, "image", str, where),
            _field(record, "text", str, where),
            _field(record, "category", str, where, optional=True),
            _meta(record, "meta", ("question_id", "image", "text", "category"), where),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one question in one run. Points are always read from the raw `text`.

    `confidence` lies in [0, 1]; `token_ids` are the generated ids (decoding and encoding again is not an identity).
    """

    question_id: QuestionId
    prompt: str
    text: str
    answer_id: str
    model_id: str
    category: str | None = None
    confidence: float | None = None
    seed: int | None = None
    run: int = 0
    token_ids: tuple[int, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cut(self) -> bool:
        """Whether the answer ended at the limit of tokens, if that was recorded."""
        return self.metadata.get("finish") in FINISHED_AT_LIMIT

    def as_json(self) -> dict[str, Any]:
        record = {part.name: getattr(self, part.name) for part in fields(self)}
        return record | {"token_ids": list(self.token_ids), "metadata": dict(self.metadata)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Answer:
        """Read a record. Only `question_id` and `text` are required: answer files of other programs are read too."""
        token_ids = _field(record, "token_ids", list, where, optional=True) or []
        if not all(type(token_id) is int for token_id in token_ids):
            raise InputError(f'{where}: "token_ids" must be a list of integers')
        confidence = _field(record, "confidence", (int, float), where, optional=True)
        return cls(
            _field(record, "question_id", _ID, where),
            _field(record, "prompt", str, where, optional=True) or "",
            _field(record, "text", str, where),
            str(record.get("answer_id") or ""),
            _field(record, "model_id", str, where, optional=True) or "",
            _field(record, "category", str, where, optional=True),
            None if confidence is None else float(confidence),
            _field(record, "seed", int, where, optional=True),
            _field(record, "run", int, where, optional=True) or 0,
            tuple(token_ids),
            _meta(record, "metadata", tuple(part.name for part in fields(cls)), where),
        )


def read_samples(path: str | Path) -> Iterator[Sample]:
    """Yield the samples of a JSON list or a JSONL file, in constant memory.

    InputError, while reading, names the file and the line or the position in the list.
    """
    path = existing_file(path, "the data file")
    if path.suffix.lower() == ".csv":
        advice = "trace-vlm make-benchmark --train, or python -m trace.data.sources convert, makes samples of it"
        raise InputError(f"{path} is a CSV, not a file of samples: {advice}")
    return (Sample.from_json(record, where) for where, record in read_records(path))


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of a JSON list or a JSONL file, before the fields are checked."""
    first = first_character(path)
    if not first:
        raise InputError(f"{path} is empty. A JSON list of samples, or one sample a line, was expected")
    if first == "[":
        for line, index, record in read_json_list(path):
            yield f"{path}, line {line} (sample {index})", record
    else:
        for line, record in read_jsonl(path):
            yield f"{path}, line {line}", record


def read_questions(path: str | Path) -> list[Question]:
    """Read the questions of a JSONL file. InputError names the line; a question_id may appear once only."""
    # As text: masks and pictures are named by it, so that 7 and "7" would meet in one file.
    questions = _read_unique(path, "the question file", Question.from_json, lambda question: str(question.question_id))
    if not questions:
        raise InputError(f"{path} holds no questions")
    return questions


def read_answers(path: str | Path) -> list[Answer]:
    """Read the answers of a JSONL file, ours or the samples of lmms-eval (`_lmms_eval_answers`).

    InputError names the line; a question_id may appear once in each run.
    """

    def read(record: Mapping[str, Any], where: str) -> list[Answer]:
        records = _lmms_eval_answers(record, where) if {"doc_id", "filtered_resps"} <= record.keys() else [record]
        return [Answer.from_json(one, where) for one in records]

    answers = _read_unique(path, "the answer file", read, lambda own: f"{own[0].question_id} of run {own[0].run}")
    return [answer for own in answers for answer in own]


def _lmms_eval_answers(sample: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return a line of lmms-eval's samples (--log_samples) as records of answers; repeated answers become runs.

    The question's id is in the document, which some versions write, or with a metric. `resps`, missing where it equals
    `filtered_resps`, is what the model wrote.
    """
    details = [value for value in (sample.get("doc"), *sample.values()) if isinstance(value, dict)]
    ids = [value[name] for value in details for name in ("question_id", "id") if name in value]
    if not ids:
        raise InputError(
            f'{where}: neither "doc" nor a metric of this sample of lmms-eval holds a "question_id" or "id". Evaluate with '
            "a task that records it, as those of Where2Place, RefSpatial and this project do"
        )
    texts, tokens = sample.get("resps", sample["filtered_resps"]), sample.get("token_counts")
    texts = texts if isinstance(texts, list) else [texts]
    if not texts:
        raise InputError(f'{where}: "resps" is empty')
    counts = tokens[0] if isinstance(tokens, list) and tokens else None
    metadata = {"tokens_out": counts.get("output_tokens") if isinstance(counts, dict) else None}
    shared = {"question_id": ids[0], "prompt": sample.get("input"), "metadata": metadata}
    return [shared | {"text": text, "run": run} for run, text in enumerate(texts)]


def _read_unique(
    path: str | Path, what: str, from_json: Callable[[Mapping[str, Any], str], T], key: Callable[[T], str]
) -> list[T]:
    path = existing_file(path, what)
    records: list[T] = []
    lines: dict[str, int] = {}
    for line, values in read_jsonl(path):
        records.append(from_json(values, f"{path}, line {line}"))
        name = key(records[-1])
        if (first := lines.setdefault(name, line)) != line:
            raise InputError(
                f"{path}, line {line}: question_id {name} was on line {first} already. Each may appear once"
            )
    return records


def answered(path: str | Path) -> set[QuestionId]:
    """Return the question ids answered in a file that may be absent or end in half a line."""
    done: set[QuestionId] = set()
    for line, record in read_jsonl(path, skip_partial_line=True) if Path(path).exists() else ():
        done.add(_field(record, "question_id", _ID, f"{path}, line {line}"))
    return done


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write LLaVA's JSON list by `replacing`, one sample a line; the samples may be a stream."""
    write_json_list(path, (sample.as_json() for sample in samples))


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write JSONL by `replacing`."""
    write_jsonl(path, (question.as_json() for question in questions))


# --- fields of a record -----------------------------------------------------------------------------------------------

_ID = (int, str)
_EXPECTED = {
    str: "a text", list: "a list", int: "an integer", dict: "an object", (int, float): "a finite number",
    _ID: "an integer or a text that is not empty",
}  # fmt: skip


def _field(record: Mapping[str, Any], key: str, kind: Any, where: str, optional: bool = False) -> Any:
    value = record.get(key)
    if value is None and optional:
        return None
    if key not in record:
        raise InputError(f'{where}: "{key}" is missing')
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is _ID and value == ""):
        raise InputError(f'{where}: "{key}" must be {_EXPECTED[kind]}, not {json_type(value)}')
    if kind == (int, float) and not abs(value) < 1e300:  # JSON's NaN and Infinity, and what no float holds
        raise InputError(f'{where}: "{key}" must be {_EXPECTED[kind]}')
    if isinstance(value, str) and (half := lone_surrogate(value)):
        raise InputError(f'{where}: "{key}" holds half a character ({half!r}). Write the text again as UTF-8')
    return value


def lone_surrogate(text: str) -> str | None:
    """Return a surrogate without its pair, which JSON can hold but UTF-8 and tokenizers cannot; None if there is none."""
    try:
        text.encode("utf-8")
        return None
    except UnicodeEncodeError as error:
        return text[error.start]


def _meta(record: Mapping[str, Any], key: str, known: tuple[str, ...], where: str) -> dict[str, Any]:
    own = _field(record, key, dict, where, optional=True) or {}
    return {name: value for name, value in record.items() if name not in known and name != key} | own
