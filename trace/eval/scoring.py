"""The score of an answer, and the results of answer files question by question.

An answer scores the fraction of its points inside the ground-truth region, unless its question names another of `rules`;
boxes alone score the fraction of their pixels; an answer without a point scores 0 and stays in the mean, which is over
questions. `robopoint_score` keeps the behaviour of the reference's script for comparable numbers. Beside the models,
`score_runs` scores baselines: uniform points, the image centre, answers about other images, the shortcuts that a benchmark
stores in `meta["shortcuts"]`, and always yes or no.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from ..utils.files import sha256
from .absence import Outcomes
from .benchmark import Benchmark, Mask, pair_answers, read_run_record, run_settings
from .error_classes import UNANSWERED, ErrorClassifier, RegionDistances, UnparsedAnswer, answer_errors, explain_unparsed
from .quality import answer_quality
from .rules import ALL_POINTS, NOTHING, SHARE, YES_NO, counted_points, is_readable, judge, rule_of
from .statistics import Values

MAX_SHUFFLES = 20  # answers about other images that are scored on a question's mask
GROUP_FIELDS = ("category", "task", "kind", "relation", "hops")  # a question's own field, then fields of its meta


def score(points: Sequence[Point | Box], mask: Mask) -> float:
    """Return the fraction of `points` inside `mask` `[height, width]`, from 0 to 1; no points score 0."""
    hits, total = count_hits(points, mask)
    return hits / total if total else 0.0


def score_response(response: Response, question: Question, mask: Mask | None) -> float:
    """Return the score of an answer by its question's rule, from 0 to 1; `mask` is None for yes and no."""
    hits, total = _judge(response, question, mask)
    return hits / total if total else 0.0


def _judge(response: Response, question: Question, mask: Mask | None) -> tuple[int, int]:
    return judge(question, response, lambda points: (0, 0) if mask is None else count_hits(points, mask))


def count_hits(points: Sequence[Point | Box], mask: Mask) -> tuple[int, int]:
    """Return how many of an answer's points are inside `mask` `[height, width]`, and how many count.

    Points are normalised to the mask's image. (1, 1) belongs to the last pixel; points outside the image miss. Boxes
    beside points do not count (`points.scored_indices`); otherwise a box counts as its pixels, also those outside.
    """
    height, width = mask.shape
    hits = total = 0
    for item in (points[index] for index in scored_indices(points)):
        if isinstance(item, Box):
            left, top, right, bottom = item.to_pixel_range(width, height)
            hits += int(mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)].sum())
            total += (right - left) * (bottom - top)
        else:
            pixel = item.to_pixel(width, height)
            hits += pixel is not None and bool(mask[pixel[1], pixel[0]])
            total += 1
    return hits, total


@dataclass(frozen=True, slots=True)
class RunAnswers:
    """The parsed answers of one run, by question id. Of mixed answers, `responses` holds only the points."""

    label: str
    path: Path
    responses: Mapping[str, Response]
    record: Mapping[str, Any]  # of the run that wrote the file, {} for answers from elsewhere
    unparsed: tuple[UnparsedAnswer, ...]
    notes: tuple[str, ...]  # warnings about the reading
    convention: str  # in which the answers were read; of several, all names
    confidence: Mapping[str, tuple[float, ...]]  # of each point, where known
    tokens: Mapping[str, int]  # generated, where known
    cut: frozenset[str]  # questions whose answer ended at the token limit
    source: str  # the file's name, with the run if it holds several

    @property
    def skipped(self) -> frozenset[str]:
        """Questions that were not asked because their images are broken."""
        skipped = self.record.get("skipped")
        return frozenset(map(str, skipped)) if isinstance(skipped, list) else frozenset()


def conventions_per_file(names: Sequence[str] | None, files: int) -> list[str | None]:
    """Return the convention of each file, from one name for all or one per file. InputError: unknown, or a mismatch."""
    names = [convention(name).name for name in names or ()]
    if len(names) not in (0, 1, files):
        raise InputError(f"{len(names)} conventions for {files} answer files. Give one for all, or one each")
    return [None] * files if not names else [*names] * (files if len(names) == 1 else 1)


def read_runs(path: Path, label: str, benchmark: Benchmark, convention_name: str | None = None) -> list[RunAnswers]:
    """Read an answer file: one run, or several that the answers' `run` tells apart.

    Args:
        convention_name: of answers that record none; without it, answers that may not be in `unit` are an InputError.
            It does not apply to a file with a run's record: this project wrote it, in its own convention.
    """
    numbers = sorted({answer.run for answer in read_answers(path)})
    runs = numbers if len(numbers) > 1 else [None]
    return [read_single_run(path, label, benchmark, convention_name, number) for number in runs]


def read_single_run(
    path: Path, label: str, benchmark: Benchmark, name: str | None = None, number: int | None = None
) -> RunAnswers:
    """Read one run of an answer file: `number`, or the only one; otherwise as `read_runs`."""
    run_answers = [answer for answer in read_answers(path) if number is None or answer.run == number]
    answers, record = pair_answers(run_answers, benchmark, path), read_run_record(path)
    if not record and name is None and all(answer.metadata.get("convention") is None for answer in answers.values()):
        for answer in answers.values():
            if shown := foreign_syntax(answer.text):
                raise InputError(
                    f"{path}, question {answer.question_id}: the answer holds {shown}, and nothing records how its model "
                    "writes coordinates. Name its convention with --convention (unit: from 0 to 1, and integers above 1 "
                    f"are pixels; {', '.join(other for other in CONVENTIONS if other != 'unit')})"
                )
    default = convention(name) if name is not None and not record else CONVENTIONS["unit"]
    responses: dict[str, Response] = {}
    confidence: dict[str, tuple[float, ...]] = {}
    doubts, conventions, unparsed, size_assumed = ConventionCheck(), set(), [], False
    for question in benchmark.questions:
        key = str(question.question_id)
        if key not in answers:
            continue
        answer, size = answers[key], benchmark.image_size(question)
        how, sent = recorded_convention(answer.metadata, size, f"{path}, question {answer.question_id}", default)
        response = read(answer.text, size, how, sent)
        responses[key] = response.select(kept := scored_indices(response.points))
        if point_confidence := _point_confidence(answer, path):
            aligned = len(point_confidence) == len(response.points)
            confidence[key] = tuple(point_confidence[index] for index in kept) if aligned else point_confidence
        doubts.add(responses[key], how, sent)
        conventions.add(how.name)
        size_assumed |= how.scale is None and "sent" not in answer.metadata
        if not is_readable(question, responses[key]):
            unparsed.append(explain_unparsed(answer.question_id, responses[key], answer.cut, rule_of(question)))
    names = ", ".join(sorted(conventions))
    notes = [doubt] if (doubt := doubts.warning(names)) else []
    if name is not None and name not in conventions and answers:
        notes.append(f"--convention {name} does not apply: the file records its own, {names}")
    answered_file = run_settings(record).get("question_sha256")
    if answered_file and answered_file != sha256(benchmark.question_file):
        notes.append(f"{benchmark.question_file} is not the file that was answered, or was changed since")
    if size_assumed:
        notes.append("no size of the pictures as sent is recorded: pixels are read as those of the originals")
    tokens = {key: len(one.token_ids) or one.metadata.get("tokens_out") for key, one in answers.items()}
    return RunAnswers(
        label, path, responses, record, tuple(unparsed), tuple(notes), names, confidence,
        tokens={key: count for key, count in tokens.items() if isinstance(count, int) and count},
        cut=frozenset(key for key, answer in answers.items() if answer.cut),
        source=path.name if number is None else f"{path.name}, run {number},",
    )  # fmt: skip


def read_response(answer: Answer, size: tuple[int, int], source: Path) -> Response:
    """Parse the counted points of an answer, in the convention that `api_vqa` records with it."""
    how, sent = recorded_convention(answer.metadata, size, f"{source}, question {answer.question_id}")
    response = read(answer.text, size, how, sent)
    return response.select(scored_indices(response.points))


def _point_confidence(answer: Answer, source: Path) -> tuple[float, ...]:
    """The confidence of each point, as `model_vqa` writes it; () in files of other programs. InputError: out of range."""
    values = answer.metadata.get("point_confidence")
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return ()
    if not all(0 <= value <= 1 + 1e-6 for value in values):  # a probability as 32 bits round it
        raise InputError(f"{source}, question {answer.question_id}: point_confidence must be from 0 to 1, not {values}")
    return tuple(min(1.0, float(value)) for value in values)


@dataclass(slots=True)
class RunScores:
    """One run's results, one value per question in the order of the benchmark."""

    run: RunAnswers
    scores: list[float] = field(default_factory=list)  # from 0 to 1, 0 for unanswered questions
    first: list[float | None] = field(default_factory=list)  # of the first point alone; None for yes and no
    points: list[int | None] = field(default_factory=list)
    quality: list[Mapping[str, float]] = field(default_factory=list)  # of the answered questions; not by question
    weights: list[int] = field(default_factory=list)  # under which the mean of `scores` is the micro accuracy
    distances: list[float | None] = field(default_factory=list)  # mean over the points, in pixels to the region
    errors: list[Mapping[str, float]] = field(default_factory=list)  # error class -> share of the answer
    point_confidence: list[tuple[float, float]] = field(default_factory=list)  # and score; not by question
    answer_confidence: list[tuple[float, float]] = field(default_factory=list)
    shuffled: list[float | None] = field(default_factory=list)  # None without answers about other images
    robopoint: list[float | None] = field(default_factory=list)  # with --compat; None where the reference skips it
    outcomes: Outcomes = field(default_factory=Outcomes)  # of the questions with a mask, as `shuffled_outcomes`
    shuffled_outcomes: Outcomes = field(default_factory=Outcomes)  # zeros without answers about other images
    unanswered: int = 0
    cut: int = 0  # without a point because they ended at the token limit
    unparsable: int = 0  # without a point though they ended by themselves
    outside: int = 0  # answers with all points outside the image

    def add(
        self, question: Question, mask: Mask | None, classifier: ErrorClassifier | None,
        distances: RegionDistances | None,
    ) -> None:  # fmt: skip
        """Score the answer to one question; for yes and no, the last three are None."""
        key = str(question.question_id)
        response, cut = self.run.responses.get(key), key in self.run.cut
        points = response.points if response is not None else ()
        hits, total = _judge(response or _pointing(), question, mask)
        self.scores.append(hits / total if total else 0.0)
        absent = rule_of(question) == NOTHING
        self.weights.append(0 if absent else total)
        if mask is not None:
            none = response is not None and response.none
            self.outcomes.add(none, bool(points), self.scores[-1])
        self.first.append(None if mask is None else self.scores[-1] if absent else score(points[:1], mask))
        self.points.append(None if mask is None else len(points))
        self.distances.append(None)
        self.unanswered += response is None
        if response is None:
            self.errors.append({UNANSWERED: 1.0})
            return
        self.errors.append(answer_errors(question, response, self.scores[-1] == 1, cut, classifier))
        unread = not is_readable(question, response)
        self.cut += unread and cut
        self.unparsable += unread and not cut
        if mask is None or classifier is None or distances is None:
            return
        centers = [item.center for item in counted_points(question, points)]
        self.quality.append(answer_quality(response, mask, classifier.meta, classifier.instances))
        self.distances[-1] = None if absent else _mean(distances.measure(centers))
        self.outside += bool(points) and not any(center.inside for center in centers)
        confidence = self.run.confidence.get(key, ())
        if confidence and len(confidence) == len(points):
            self.point_confidence += [(p, score([item], mask)) for p, item in zip(confidence, points, strict=True)]
            self.answer_confidence.append((sum(confidence) / len(confidence), self.scores[-1]))


@dataclass(frozen=True, slots=True)
class BenchmarkScores:
    """All runs on one benchmark."""

    benchmark: Benchmark
    runs: tuple[RunScores, ...]
    baselines: Mapping[str, Sequence[float | None]]  # name -> one value per question, None where it does not apply
    images: Sequence[str]  # identifies the image of each question
    full_masks: Sequence[Question]  # whose mask covers the whole image


def score_runs(
    benchmark: Benchmark, runs: Sequence[RunAnswers], rng: np.random.Generator, robopoint: bool = False
) -> BenchmarkScores:
    """Score every run on every question; each mask is read once.

    `rng` chooses which other answers the shuffled baseline takes; `robopoint` also scores as the reference's script.
    """
    benchmark = replace(benchmark, skipped=frozenset().union(*(run.skipped for run in runs)))
    results = tuple(RunScores(run) for run in runs)
    shortcuts = {name: None for question in benchmark.questions for name in question.meta.get("shortcuts") or {}}
    names = {f"shortcut: {name.replace('_', ' ')}": name for name in shortcuts if name not in ("uniform", "center")}
    words = [f"always {word}" for word in ("yes", "no") if YES_NO in map(rule_of, benchmark.questions)]
    baselines: dict[str, list[float | None]] = {name: [] for name in ("uniform points", "image centre", *names, *words)}
    if NOTHING in map(rule_of, benchmark.questions):
        baselines["always none"] = []
    images, full_masks = benchmark.image_identities(), []
    shuffles = _shuffles(benchmark.questions, images, rng)
    for question, others in zip(benchmark.questions, shuffles, strict=True):
        mask, key = benchmark.region(question), str(question.question_id)
        grey = benchmark.grey_mask(question) / 255.0 if robopoint and mask is not None else None
        classifier = None if mask is None else ErrorClassifier(question, mask, benchmark.question_file.parent)
        distances = None if mask is None else RegionDistances(mask)
        full_masks += [question] * bool(mask is not None and mask.all())
        for result in results:
            responses = result.run.responses
            result.add(question, mask, classifier, distances)
            about_others = [responses[other] for other in others if other in responses]
            shuffled = [score_response(response, question, mask) for response in about_others]
            result.shuffled.append(_mean(shuffled))
            if mask is not None:
                shares = [response.none for response in about_others], [bool(one.points) for one in about_others]
                result.shuffled_outcomes.add(*(_mean(share) or 0.0 for share in (*shares, shuffled)))
            if robopoint:
                text = responses[key].text if key in responses else None
                result.robopoint.append(None if text is None or grey is None else robopoint_score(text, grey))
        if "always none" in baselines:
            baselines["always none"].append(None if mask is None else float(rule_of(question) == NOTHING))
        for word in words:
            baselines[word].append(None if mask is not None else float(word.endswith(question.meta["answer"])))
        points = question.meta["count"] if rule_of(question) == ALL_POINTS else 1
        # what random points reach on average
        baselines["uniform points"].append(None if mask is None else float(mask.mean()) ** points)
        places: dict[str, Any] = {"image centre": (0.5, 0.5)}  # x and y, None where it does not apply
        places |= {name: (question.meta.get("shortcuts") or {}).get(shortcut) for name, shortcut in names.items()}
        for name, place in places.items():
            unknown = place is None or mask is None
            baselines[name].append(None if unknown else score_response(_pointing(*place), question, mask))
    return BenchmarkScores(benchmark, results, baselines, images, full_masks)


def _pointing(*point: float) -> Response:
    """Return an answer with one point, or with none."""
    return Response("", (), (Point(*point),) if point else (), None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _shuffles(questions: Sequence[Question], images: Sequence[str], rng: np.random.Generator) -> list[list[str]]:
    """For each question, the ids of questions of the same kind about other images, at most `MAX_SHUFFLES`.

    Where some ask for what is not there, all of a task are of one kind: otherwise answers about other images would
    say whether something is there.
    """
    kinds = [(str(one.meta.get("kind")), str(one.meta.get("relation")), rule_of(one)) for one in questions]
    if any(rule == NOTHING for *_, rule in kinds):
        kinds = [(str(one.meta.get("task")), "", kind[-1].replace(NOTHING, SHARE))
                 for one, kind in zip(questions, kinds, strict=True)]  # fmt: skip
    by_kind: dict[Any, list[int]] = {}
    for index, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(index)
    chosen = []
    for index, kind in enumerate(kinds):
        peers, count = by_kind[kind], len(by_kind[kind])
        # A few more are drawn than needed, because those about the same image are left out.
        few = count < 8 * MAX_SHUFFLES
        draw = rng.permutation(count) if few else rng.choice(count, 4 * MAX_SHUFFLES, False)
        others = [str(questions[peers[at]].question_id) for at in draw if images[peers[at]] != images[index]]
        chosen.append(others[:MAX_SHUFFLES])
    return chosen


def asked_differently(asked: Mapping[str, bool | None]) -> list[str]:
    """Return the warning that some models were asked to reason and others were not: label -> whether, None if unknown."""
    reasoning, direct = ([label for label, one in asked.items() if one is way] for way in (True, False))
    how = f"asked to reason: {', '.join(reasoning)}; asked not to: {', '.join(direct)}"
    return [f"{how}. A difference between them is also one of the request"] if reasoning and direct else []


def full_mask_warnings(full_masks: Sequence[Question], count: int) -> list[str]:
    """Return the warning about those of `count` questions whose mask covers the whole image, if there are any."""
    return [
        f"the mask covers the whole image in {len(full_masks)} of {count} questions (question {first.question_id} is the "
        "first), where every answer counts as right" for first in full_masks[:1]
    ]  # fmt: skip


def question_groups(questions: Sequence[Question]) -> dict[tuple[str, str], list[int]]:
    """Return question indices by (field, value): ("all", "all"), then each field that tells questions apart."""
    groups: dict[tuple[str, str], list[int]] = {("all", "all"): list(range(len(questions)))}
    for name in GROUP_FIELDS:
        parts: dict[tuple[str, str], list[int]] = {}
        for index, question in enumerate(questions):
            value = question.category if name == "category" else question.meta.get(name)
            if name == "hops" and isinstance(value, list):  # one entry each; a chain to nothing cannot be followed
                value = None if question.meta.get("absent") else len(value)
            if value is not None:
                parts.setdefault((name, str(value)), []).append(index)
        if len(parts) > 1 or (parts and sum(map(len, parts.values())) < len(questions)):
            groups |= parts
    return groups


REFERENCE_SIZE = (640, 480)  # the image size that the reference assumes for every image
_BRACKETS = re.compile(r"\(([^()]*)\)")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?")


def robopoint_score(text: str, mask: Values, size: tuple[int, int] = REFERENCE_SIZE) -> float | None:
    """Return what RoboPoint's script gives the answer `text`, or None where it skips the answer or crashes on it.

    `mask` `[height, width]` holds grey values divided by 255, not binarised: a point on a JPEG edge counts in part.
    Coordinates are read from the whole text, and scaled by `size` (width, height) whatever the mask's size is.
    """
    groups: list[NDArray[np.generic]] = []
    try:
        for body in _BRACKETS.findall(text):
            first, *rest = body.split(",")
            pieces = [first, *(piece.lstrip() for piece in rest)]  # a space is allowed after a comma and nowhere else
            if not all(_NUMBER.fullmatch(piece) for piece in pieces):
                continue
            numbers = [float(piece) if "." in piece else int(piece) for piece in pieces]
            if len(numbers) in (2, 4):
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
        return None  # too large for an integer array: indexing with it is where the script crashes
    hits = mask[pixels[inside, 1].astype(np.int64), pixels[inside, 0].astype(np.int64)]
    return float(np.concatenate([hits, np.zeros(int((~inside).sum()))]).mean())


def _reference_pixels(numbers: list[int | float], size: tuple[int, int]) -> NDArray[np.generic]:
    """Pixels `[n, 2]` (x, y) of a pair or a box; scaled when a pair holds a float, or a box begins with one."""
    scaled = any(isinstance(number, float) for number in (numbers if len(numbers) == 2 else numbers[:1]))
    if scaled:
        numbers = [int(number * size[index % 2]) for index, number in enumerate(numbers)]
    if len(numbers) == 2:
        return np.array([numbers])
    x0, y0, x1, y1 = numbers
    columns = range(*slice(x0, x1).indices(size[0]))  # negative ends count from the far side, as in a slice
    rows = range(*slice(y0, y1).indices(size[1]))
    grid = np.stack(np.meshgrid(columns, rows), axis=-1)
    return grid.reshape(-1, 2).astype(np.int64)
