"""Answers against masks: every number that a summary is made of, question by question.

Models are graded side by side, so that a mask is read once, and beside them what guesses and simple rules reach on the
same masks: uniform points, the image's centre, the model's own answers about other images, and the shortcuts that a
benchmark stores with its questions (`meta["shortcuts"]`: one point each, or null where a shortcut does not apply).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.conventions import CONVENTIONS, ConventionCheck, convention, foreign_syntax, read, recorded_convention
from ..core.points import Box, Point, scored_indices
from ..core.reasoning import Response
from ..core.records import Answer, Question, read_answers
from ..utils.command import InputError
from .benchmark import Benchmark, Mask, fractions, pair_answers, read_run
from .error_classes import UNANSWERED, Distances, ErrorClassifier
from .statistics import Values
from .unparsed import Unread, unread

REFERENCE_SIZE = (640, 480)  # the image size that the reference assumes for every image
SHUFFLES = 20  # answers about other images that are scored on a question's mask
GROUP_FIELDS = ("category", "task", "kind", "relation")  # a question's own field, then those of its meta


def score(points: Sequence[Point | Box], mask: Mask) -> float:
    """The fraction of `points` inside `mask` `[height, width]`, from 0 to 1; no points score 0.

    Points are normalised to the image that the mask belongs to. (1, 1) is the image's corner and belongs to its
    last pixel; what lies outside the image is a miss. Beside points boxes do not count (`points.scored_indices`);
    otherwise a box weighs as many points as it has pixels, those outside the image included.
    """
    hits = total = 0
    for item in (points[place] for place in scored_indices(points)):
        inside, count = _box_hits(item, mask) if isinstance(item, Box) else (int(_point_hits(item, mask)), 1)
        hits += inside
        total += count
    return hits / total if total else 0.0


def weight(points: Sequence[Point | Box], mask: Mask) -> float:
    """What an answer counts in the micro mean: a point 1, a box its pixels."""
    items = [points[place] for place in scored_indices(points)]
    return float(sum(_box_hits(item, mask)[1] if isinstance(item, Box) else 1 for item in items))


def _point_hits(point: Point, mask: Mask) -> bool:
    height, width = mask.shape
    pixel = point.to_pixel(width, height)
    return pixel is not None and bool(mask[pixel[1], pixel[0]])


def _box_hits(box: Box, mask: Mask) -> tuple[int, int]:
    """Pixels of `box` inside the region, and all of its pixels (at least one)."""
    height, width = mask.shape
    left, top, right, bottom = box.to_pixel_range(width, height)
    inside = mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return int(inside.sum()), (right - left) * (bottom - top)


@dataclass(frozen=True, slots=True)
class RunAnswers:
    """The answers of one file: `responses` by question key, tokens generated where they are known.

    Of an answer that mixes points and boxes a response only holds the points (`points.scored_indices`).
    """

    label: str
    path: Path
    responses: Mapping[str, Response]
    tokens: Mapping[str, int]
    record: Mapping[str, Any]  # of the run that wrote the file, {} for answers from elsewhere
    confidence: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of each point, where it is known
    cut: frozenset[str] = frozenset()  # keys of the questions whose answer ended at the limit of tokens
    number: int | None = None  # of the run, where its file holds several
    convention: str = "unit"  # in which the answers were read; of several the names
    notes: tuple[str, ...] = ()  # what a reader of the numbers has to know about the reading
    unread: tuple[Unread, ...] = ()  # the answers without a point

    @property
    def source(self) -> str:
        """The file's name, with the run where it holds several."""
        return self.path.name if self.number is None else f"{self.path.name}, run {self.number},"

    @property
    def skipped(self) -> frozenset[str]:
        """Keys of the questions that were not asked, as their images are broken."""
        found = self.record.get("skipped")
        return frozenset(map(str, found)) if isinstance(found, list) else frozenset()


@dataclass(slots=True)
class RunScores:
    """One run's results, one value a question, in the order of the suite.

    `scores` are from 0 to 1, 0 for what is not answered; `first` scores the first point alone; `weights` is what an
    answer's points weigh (a box its pixels), so that micro accuracy is the mean of `scores` under them; `distances`
    is the mean distance in pixels of the points to the region, None without points; `failures` maps classes of
    `failures` to shares of the answer; `shuffled` is None where no other image's answer exists, `robopoint` (only
    under compatibility) where the reference skips. `sure_points` and `sure_answers` pair confidence with success.
    """

    run: RunAnswers
    scores: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    points: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    distances: list[float | None] = field(default_factory=list)
    failures: list[Mapping[str, float]] = field(default_factory=list)
    sure_points: list[tuple[float, float]] = field(default_factory=list)
    sure_answers: list[tuple[float, float]] = field(default_factory=list)
    shuffled: list[float | None] = field(default_factory=list)
    robopoint: list[float | None] = field(default_factory=list)
    unanswered: int = 0
    cut: int = 0  # without a point because they ended at the limit of tokens
    unparsable: int = 0  # without a point though they ended by themselves
    outside: int = 0  # answers all of whose points lie outside the image


@dataclass(frozen=True, slots=True)
class BenchmarkScores:
    """All runs over one suite; `baselines` maps a name to one value a question, None where it does not apply.

    `pictures` tells the questions' pictures apart, one a question; `covered` are the questions whose mask is the whole
    picture.
    """

    suite: Benchmark
    runs: tuple[RunScores, ...]
    baselines: Mapping[str, Sequence[float | None]]
    pictures: Sequence[str]
    covered: Sequence[Question]


def conventions_per_file(conventions: Sequence[str] | None, files: int) -> list[str | None]:
    """The convention asked for each file: one for all of them, or one each. InputError: unknown, or another number."""
    names = [convention(name).name for name in conventions or ()]
    if len(names) not in (0, 1, files):
        raise InputError(f"{len(names)} conventions for {files} answer files: give one for all, or one each")
    return [None] * files if not names else [*names] * (files if len(names) == 1 else 1)


def read_runs(path: Path, label: str, suite: Benchmark, asked: str | None = None) -> list[RunAnswers]:
    """Read and parse an answer file: one run, or several that its answers tell apart by `run`.

    Args:
        asked: the convention of answers that record none. It says nothing about a file with a run's record: this
            project wrote it, in its own convention.
    Raises:
        InputError: the file is broken, belongs to another benchmark, or may be of another convention and tells none.
    """
    answers = read_answers(path)
    numbers = sorted({answer.run for answer in answers})
    if len(numbers) < 2:
        return [_run(answers, path, label, suite, None, asked)]
    by_run = [[answer for answer in answers if answer.run == number] for number in numbers]
    return [_run(some, path, label, suite, number, asked) for some, number in zip(by_run, numbers, strict=True)]


def read_single_run(path: Path, label: str, suite: Benchmark, asked: str | None = None) -> RunAnswers:
    """Read and parse an answer file of one run. InputError as `read_runs`, and where it holds several."""
    return _run(read_answers(path), path, label, suite, None, asked)


def _run(
    found: Sequence[Answer], path: Path, label: str, suite: Benchmark, number: int | None, asked: str | None
) -> RunAnswers:
    answers = pair_answers(found, suite, path)
    record = read_run(path)
    recorded = {str(name) for answer in answers.values() if (name := answer.metadata.get("convention")) is not None}
    if not record and not recorded and asked is None:
        _refuse_foreign(answers.values(), path)
    otherwise = convention(asked) if asked is not None and not record else CONVENTIONS["unit"]
    responses: dict[str, Response] = {}
    confidence: dict[str, tuple[float, ...]] = {}
    doubts, conventions, missed, assumed = ConventionCheck(), set(), [], False
    sizes = {str(question.question_id): suite.image_size(question) for question in suite.questions
             if str(question.question_id) in answers}  # fmt: skip
    for name, answer in answers.items():
        how, sent = recorded_convention(
            answer.metadata, sizes[name], f"{path}, question {answer.question_id}", otherwise
        )
        responses[name], sure = _counting(read(answer.text, sizes[name], how, sent), _confidence(answer, path))
        if sure:
            confidence[name] = sure
        doubts.add(responses[name], how, sent)
        conventions.add(how.name)
        assumed |= how.scale is None and "sent" not in answer.metadata
        if not responses[name].points:
            missed.append(unread(answer.question_id, responses[name], answer.cut))
    names = ", ".join(sorted(conventions))
    notes = [doubt] if (doubt := doubts.warning(names)) else []
    if asked is not None and asked not in conventions and answers:
        notes.append(f"--convention {asked} does not apply: the file records its own, {names}")
    if assumed:
        notes.append("no size of the pictures as sent is recorded: pixels are read as those of the originals")
    return RunAnswers(
        label=label,
        path=path,
        responses=responses,
        tokens={name: count for name, answer in answers.items() if (count := _tokens(answer))},
        record=record,
        confidence=confidence,
        cut=frozenset(name for name, answer in answers.items() if answer.cut),
        number=number,
        convention=names,
        notes=tuple(notes),
        unread=tuple(missed),
    )


def _refuse_foreign(answers: Iterable[Answer], path: Path) -> None:
    """InputError where an answer may count in another way than from 0 to 1, and nothing says in which."""
    for answer in answers:
        if shown := foreign_syntax(answer.text):
            raise InputError(
                f"{path}, question {answer.question_id}: the answer holds {shown}, and nothing records how its model "
                "writes coordinates. Name its convention with --convention (unit: from 0 to 1, and integers above 1 are "
                f"pixels; {', '.join(name for name in CONVENTIONS if name != 'unit')})"
            )


def response_of(answer: Answer, size: tuple[int, int], source: Path) -> Response:
    """What counts of an answer, read in the convention of the model that gave it (`api_vqa` records it)."""
    how, sent = recorded_convention(answer.metadata, size, f"{source}, question {answer.question_id}")
    return _counting(read(answer.text, size, how, sent), ())[0]


def _counting(response: Response, confidence: tuple[float, ...]) -> tuple[Response, tuple[float, ...]]:
    """An answer without what does not count (`points.scored_indices`); `confidence` is that of each point, where known."""
    kept = scored_indices(response.points)
    if len(confidence) == len(response.points):
        confidence = tuple(confidence[place] for place in kept)
    return response.select(kept), confidence


def _tokens(answer: Answer) -> int:
    """How many were generated; 0 where that is not known."""
    counted = answer.metadata.get("tokens_out")
    return len(answer.token_ids) or (counted if isinstance(counted, int) else 0)


def _confidence(answer: Answer, source: Path) -> tuple[float, ...]:
    """The confidence of each point, as `model_vqa` writes it; () in files of other programs.

    Raises:
        InputError: one does not lie from 0 to 1.
    """
    found = answer.metadata.get("point_confidence")
    if not isinstance(found, list) or not all(isinstance(one, int | float) for one in found):
        return ()
    wrong = [one for one in found if not 0 <= one <= 1 + 1e-6]  # a probability as 32 bits round it
    if wrong:
        raise InputError(
            f"{source}, question {answer.question_id}: point_confidence holds {wrong[0]}; a confidence lies from 0 to 1"
        )
    return tuple(min(1.0, float(one)) for one in found)


def score_runs(
    suite: Benchmark, runs: Sequence[RunAnswers], rng: np.random.Generator, robopoint: bool = False
) -> BenchmarkScores:
    """Score every run on every question of `suite`.

    Args:
        rng: chooses which other answers the shuffled baseline takes.
        robopoint: also score as the reference's script does.
    Raises:
        InputError: a mask is missing, empty, or of another size than its image.
    """
    suite = replace(suite, skipped=frozenset().union(*(run.skipped for run in runs)))
    grades = tuple(RunScores(run) for run in runs)
    names = shortcut_names(suite.questions)
    baselines: dict[str, list[float | None]] = {name: [] for name in ("uniform points", "image centre", *names)}
    pictures, covered = suite.pictures(), []
    strangers = _strangers(suite.questions, pictures, rng)
    for question, others in zip(suite.questions, strangers, strict=True):
        mask = suite.mask(question)
        covered += [question] * bool(mask.all())
        grey = fractions(suite.grey_mask(question)) if robopoint else None
        judge, distances = ErrorClassifier(question, mask, suite.question_file.parent), Distances(mask)
        for one in grades:
            response = one.run.responses.get(str(question.question_id))
            cut = str(question.question_id) in one.run.cut
            _grade(one, response, mask, cut)
            _locate(one, response, judge, distances, cut)
            _sure(one, response, one.run.confidence.get(str(question.question_id), ()), mask)
            known = [found for name in others if (found := one.run.responses.get(name)) is not None]
            one.shuffled.append(_mean([score(other.points, mask) for other in known]))
            if grey is not None:
                one.robopoint.append(robopoint_score(response.text, grey) if response is not None else None)
        baselines["uniform points"].append(float(mask.mean()))  # what random points reach on average
        baselines["image centre"].append(score([Point(0.5, 0.5)], mask))
        for name, shortcut in names.items():
            point = _shortcut(question, shortcut)
            baselines[name].append(None if point is None else score([point], mask))
    return BenchmarkScores(suite, grades, baselines, pictures, covered)


def _grade(grades: RunScores, response: Response | None, mask: Mask, cut: bool) -> None:
    points = response.points if response is not None else ()
    grades.scores.append(score(points, mask))
    grades.first.append(score(points[:1], mask))
    grades.points.append(len(points))
    if response is None:
        grades.unanswered += 1
    elif not points:
        grades.cut += cut
        grades.unparsable += not cut
    elif not any(item.center.inside for item in points):
        grades.outside += 1


def _locate(
    grades: RunScores, response: Response | None, judge: ErrorClassifier, distances: Distances, cut: bool
) -> None:
    """Where the points lie that miss."""
    points = response.points if response is not None else ()
    gaps = distances.of([item.center for item in points])
    grades.distances.append(_mean(gaps))
    grades.weights.append(weight(points, judge.mask))
    grades.failures.append({UNANSWERED: 1.0} if response is None else judge.shares(points, cut))


def _sure(grades: RunScores, response: Response | None, confidence: Sequence[float], mask: Mask) -> None:
    if response is None or not confidence or len(confidence) != len(response.points):
        return
    grades.sure_points += [(sure, score([item], mask)) for sure, item in zip(confidence, response.points, strict=True)]
    grades.sure_answers.append((sum(confidence) / len(confidence), score(response.points, mask)))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _strangers(questions: Sequence[Question], pictures: Sequence[str], rng: np.random.Generator) -> list[list[str]]:
    """For each question, keys of questions of the same kind about other pictures, at most `SHUFFLES`."""
    by_kind: dict[Any, list[int]] = {}
    for place, question in enumerate(questions):
        by_kind.setdefault(_kind(question), []).append(place)
    chosen = []
    for place, question in enumerate(questions):
        peers = by_kind[_kind(question)]
        # A few more are drawn than needed, as those about the same picture are left out.
        draw = rng.permutation(len(peers)) if len(peers) < 8 * SHUFFLES else rng.choice(len(peers), 4 * SHUFFLES, False)
        others = [str(questions[peers[at]].question_id) for at in draw if pictures[peers[at]] != pictures[place]]
        chosen.append(others[:SHUFFLES])
    return chosen


def _kind(question: Question) -> Any:
    return str(question.meta.get("kind")), str(question.meta.get("relation"))


def shortcut_names(questions: Sequence[Question]) -> dict[str, str]:
    """The shortcuts that any question stores: what a table calls them, and their key in `meta["shortcuts"]`.

    Without those that every benchmark has: uniform points and the image's centre.
    """
    found = {name: None for question in questions for name in question.meta.get("shortcuts") or {}}
    return {f"shortcut: {name.replace('_', ' ')}": name for name in found if name not in ("uniform", "center")}


def full_mask_warnings(covered: Sequence[Question], count: int) -> list[str]:
    """The warning about those of `count` questions whose mask is the whole picture; none without any."""
    if not covered:
        return []
    return [
        f"the mask covers the whole image in {len(covered)} of {count} questions (question {covered[0].question_id} is "
        "the first), where every answer counts as right"
    ]


def _shortcut(question: Question, name: str) -> Point | None:
    stored = (question.meta.get("shortcuts") or {}).get(name)
    if stored is None:
        return None
    try:
        x, y = stored
        return Point(float(x), float(y))
    except (TypeError, ValueError):
        raise InputError(
            f"question {question.question_id} stores {stored!r} as its shortcut {name!r}: expected [x, y] or null"
        ) from None


def groups(questions: Sequence[Question]) -> dict[tuple[str, str], list[int]]:
    """Positions of the questions by field and value: ("all", "all"), then each field that tells questions apart.

    "unseen" questions are the hard part of Where2Place.
    """
    found: dict[tuple[str, str], list[int]] = {("all", "all"): list(range(len(questions)))}
    for name in GROUP_FIELDS:
        parts: dict[tuple[str, str], list[int]] = {}
        for place, question in enumerate(questions):
            value = question.category if name == "category" else question.meta.get(name)
            if value is not None:
                parts.setdefault((name, str(value)), []).append(place)
        if len(parts) > 1 or (parts and sum(map(len, parts.values())) < len(questions)):
            found |= parts
    return found


# --- the reference's own scoring -------------------------------------------------------------------------------

_BRACKETS = re.compile(r"\(([^()]*)\)")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?")


def robopoint_score(text: str, mask: Values, size: tuple[int, int] = REFERENCE_SIZE) -> float | None:
    """What RoboPoint's script gives the answer `text`, or None where it skips the answer or dies on it.

    `mask` `[height, width]` holds grey values divided by 255, not binarised: a point on a JPEG edge counts in part.
    Coordinates are read from the whole text, and scaled by `size` (width, height) whatever the mask's size is.
    """
    groups: list[NDArray[np.generic]] = []
    try:
        for body in _BRACKETS.findall(text):
            numbers = _reference_numbers(body)
            if numbers is not None and len(numbers) in (2, 4):
                groups.append(_reference_pixels(numbers, size))
    except (ValueError, TypeError, OverflowError):
        return None  # an int of 5000 digits, a box of mixed ints and floats, infinity
    pixels = np.concatenate(groups) if groups else np.empty((0, 2), np.int64)
    if not len(pixels):
        return 0.0
    inside = np.ones(len(pixels), bool)
    for axis, side in ((0, mask.shape[1]), (1, mask.shape[0])):
        inside &= (pixels[:, axis] >= 0) & (pixels[:, axis] < side)
    if pixels.dtype.kind not in "iu":
        return None  # too large for an integer array: indexing with it is where the script dies
    hits = mask[pixels[inside, 1].astype(np.int64), pixels[inside, 0].astype(np.int64)]
    return float(np.concatenate([hits, np.zeros(int((~inside).sum()))]).mean())


def _reference_numbers(body: str) -> list[int | float] | None:
    """The numbers between two brackets, or None when the reference sees no coordinates there."""
    first, *rest = body.split(",")
    pieces = [first, *(piece.lstrip() for piece in rest)]  # a space is allowed after a comma and nowhere else
    if not all(_NUMBER.fullmatch(piece) for piece in pieces):
        return None
    return [float(piece) if "." in piece else int(piece) for piece in pieces]


def _reference_pixels(numbers: list[int | float], size: tuple[int, int]) -> NDArray[np.generic]:
    """Pixels `[n, 2]` (x, y) of a pair or a box; scaled when a pair holds a float, or a box begins with one."""
    scaled = any(isinstance(number, float) for number in (numbers if len(numbers) == 2 else numbers[:1]))
    if scaled:
        numbers = [int(number * size[place % 2]) for place, number in enumerate(numbers)]
    if len(numbers) == 2:
        return np.array([numbers])
    x0, y0, x1, y1 = numbers
    columns = range(*slice(x0, x1).indices(size[0]))  # negative ends count from the far side, as in a slice
    rows = range(*slice(y0, y1).indices(size[1]))
    grid = np.stack(np.meshgrid(columns, rows), axis=-1)
    return grid.reshape(-1, 2).astype(np.int64)
