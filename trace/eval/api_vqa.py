"""A remote model answers the questions of a benchmark: GPT-4o, Gemini, or whatever a vLLM or SGLang server serves.

    python -m trace.eval.api_vqa --provider openai --model gpt-4o --data-dir where2place --answer-file out/gpt-4o.jsonl
    python -m trace.eval.api_vqa --provider gemini --model gemini-2.5-flash --question-file D/point_questions.jsonl \\
        --image-folder D/images --answer-file out/gemini.jsonl --dry-run
    python -m trace.eval.api_vqa --provider vllm --base-url http://localhost:8000/v1 --model trace-13b --reasoning \\
        --data-dir where2place --answer-file out/trace.jsonl

Each model is asked, and read, in its own convention of coordinates (--convention; by default that of its family in
conventions.yaml). Keys come from OPENAI_API_KEY and GEMINI_API_KEY. Every response is kept in ANSWERS.cache.jsonl as soon
as it is whole: killed at any moment, the same command goes on, and nothing is asked or paid for twice. The answers are
like those of `model_vqa`.
"""

from __future__ import annotations

if not __package__:  # run by its path: the relative imports below need the installed name
    import runpy
    import sys

    del sys.path[0]  # this file's folder, whose modules must not be found under bare names
    runpy.run_module("trace_vlm.eval.api_vqa", run_name="__main__", alter_sys=True)

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.conventions import CONVENTIONS, Convention, ConventionCheck, convention, convention_of, read
from ..core.records import FINISHED_AT_LIMIT, Question, QuestionId
from ..inference.predict import prompt_template
from ..remote.flags import add_remote_flags, check_remote, estimate, model_price, report, server_address
from ..utils.command import InputError, Parser, output_folder, run
from ..utils.files import sha256, write_json, write_jsonl
from .answering import (
    Tally,
    add_question_flags,
    asked_questions,
    begun,
    broken_images,
    checked,
    done_before,
    ended,
    numbered,
    pictures,
)
from .benchmark import Benchmark, run_file
from .remote_questions import EXPECTED_TOKENS, Asking

PROTOCOLS = {"openai": "openai", "gemini": "gemini", "vllm": "openai", "sglang": "openai"}  # by provider
OWN_SERVERS = ("vllm", "sglang")
ALL_REFUSED = 8  # requests, before it is taken for certain that none will be answered


@dataclass(slots=True)
class Job:
    """One file of answers, and what has come of it so far."""

    arguments: argparse.Namespace
    suite: Benchmark
    asking: Asking
    path: Path
    tally: Tally
    skipped: Sequence[QuestionId]  # not asked, as their images are broken; the suite is without them
    failures: dict[str, str] = field(default_factory=dict)  # question key -> reason
    cut: int = 0
    doubts: ConventionCheck = field(default_factory=ConventionCheck)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = checked(_parser(), argv)
    _check(arguments)
    template, suite = prompt_template(arguments), asked_questions(arguments)
    how = _convention(arguments)
    broken = broken_images(suite, suite.questions, arguments.skip_broken)  # shows now, not after an hour
    skipped = [question.question_id for question in suite.questions if str(question.question_id) in broken]
    suite = replace(suite, questions=tuple(one for one in suite.questions if str(one.question_id) not in broken))
    server = server_address(PROTOCOLS[arguments.provider], arguments.base_url)
    jobs = []
    for number in range(1, arguments.runs + 1):
        seed = None if arguments.seed is None else arguments.seed + number - 1
        at = number if arguments.runs > 1 else 0
        asking = Asking(suite, how, arguments.box, arguments.reasoning, template, arguments.max_side,
                        _options(arguments), server, at, seed)  # fmt: skip
        jobs.append(
            Job(
                arguments, suite, asking, numbered(arguments.answer_file, number, arguments.runs), Tally(suite), skipped
            )
        )
    if arguments.dry_run:
        _dry_run(jobs)
        return 0
    output_folder(arguments.answer_file.parent)
    if arguments.overwrite:
        _forget(jobs)
    unanswered = sum(_answer_file(job) for job in jobs)
    return _finish(jobs, unanswered)


def _forget(jobs: Sequence[Job]) -> None:
    """Remove the answers, and the responses that they were made of."""
    from ..remote.client import remove_cached

    named = jobs[0].arguments.cache
    if named is None:
        _cache(jobs[0].arguments).unlink(missing_ok=True)
    else:  # it may serve other answers too
        asked = (
            job.asking.request(question).key(job.arguments.model) for job in jobs for question in job.suite.questions
        )
        remove_cached(named, set(asked))
    for job in jobs:
        job.path.unlink(missing_ok=True)
        run_file(job.path).unlink(missing_ok=True)


def _convention(arguments: argparse.Namespace) -> Convention:
    """The convention that was asked for, or that of the model's family; an unknown family is assumed and said."""
    name = arguments.model
    how = convention(arguments.convention) if arguments.convention else convention_of(name)
    assumed = "" if how is not None else ", assumed"
    if how is None:
        how = CONVENTIONS["unit"]
        print(
            f"warning: how {name} writes coordinates is not known; assumed: {how.name} ({how.summary}). Name it with "
            f"--convention ({', '.join(CONVENTIONS)})",
            file=sys.stderr,
        )
    print(f"{name} is asked and read in the convention {how.name}{assumed}: {how.summary}")
    return how


def _parser() -> Parser:
    parser = Parser(prog="api_vqa", description="A remote model answers the questions of a benchmark.")
    parser.add_argument("--provider", choices=PROTOCOLS, required=True, help="vllm and sglang need --base-url")
    parser.add_argument("--model", required=True, help="the provider's name of the model")
    add_question_flags(parser)
    parser.add_argument(
        "--convention", choices=CONVENTIONS, help="how the model writes coordinates (default: by its name)"
    )
    parser.add_argument("--box", action="store_true", help="ask for a box instead of points; all of its pixels count")
    parser.add_argument(
        "--reasoning", action=argparse.BooleanOptionalAction, default=False, help="ask for reasoning before the points"
    )
    parser.add_argument(
        "--prompt-template", type=Path, metavar="FILE", help="the whole text of a question, with {instruction} in it"
    )
    parser.add_argument(
        "--temperature", type=_temperature, default=0.0, help="0 is greedy; `default` leaves it to the provider"
    )
    parser.add_argument("--seed", type=int, help="sent along, where the provider knows seeds; run i gets seed + i - 1")
    add_remote_flags(parser.add_argument_group("the server"))
    return parser


def _temperature(text: str) -> float | None:
    if text == "default":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a temperature from 0 to 2 nor `default`")
    return value


def _check(arguments: argparse.Namespace) -> None:
    check_remote(arguments)
    if arguments.provider in OWN_SERVERS and not arguments.base_url:
        raise InputError(f"where does {arguments.provider} listen? give --base-url, such as http://localhost:8000/v1")
    if arguments.prompt_template is not None and (arguments.reasoning or arguments.box):
        raise InputError("--prompt-template is the whole text of a question: leave out --reasoning and --box")


def _options(arguments: argparse.Namespace) -> str:
    """What shapes an answer beside text, picture, model and server; part of the cache's key."""
    wanted = {"temperature": arguments.temperature, "limit": arguments.max_output_tokens}
    wanted["thinking"] = arguments.thinking_budget
    return " ".join(f"{name}={value}" for name, value in wanted.items() if value is not None)


def _cache(arguments: argparse.Namespace) -> Path:
    """One for all runs."""
    return Path(arguments.cache or arguments.answer_file.with_suffix(".cache.jsonl"))


def _settings(job: Job) -> dict[str, Any]:
    """What decides the answers. A file of answers is only continued under the same ones."""
    arguments, asking = job.arguments, job.asking
    return {
        "provider": arguments.provider,
        "model": arguments.model,
        "server": asking.server or "the provider's own",
        "question_sha256": sha256(job.suite.question_file),
        "convention": asking.convention.name,
        "box": asking.box,
        "reasoning": asking.reasoning,
        "prompt_template": sha256(arguments.prompt_template) if arguments.prompt_template else None,
        "num_questions": arguments.num_questions,
        "images": pictures(job.suite),
        "max_side": asking.max_side,
        "options": asking.options,
        "run": asking.run,
        "seed": asking.seed,
    }


# --- one file of answers -------------------------------------------------------------------------------------------


def _answer_file(job: Job) -> int:
    """Ask what was not answered yet and write the file, in the order of the questions; returns how many are missing."""
    import asyncio

    from ..remote.client import Client, Limits
    from ..remote.providers import Options, make_provider

    arguments, questions = job.arguments, job.suite.questions
    settings = _settings(job)
    done_before(job.path, settings, questions)
    record = begun("api_vqa", job.path, job.suite, arguments, settings, continued=True)
    record["skipped"] = job.skipped
    options = Options(arguments.temperature, arguments.max_output_tokens, job.asking.seed, arguments.thinking_budget)
    protocol = PROTOCOLS[arguments.provider]
    provider = make_provider(protocol, arguments.model, arguments.base_url, options, arguments.concurrency)
    limits = Limits(
        arguments.concurrency, arguments.requests_per_minute, arguments.tokens_per_minute, arguments.timeout,
        arguments.tries, arguments.first_wait,
    )  # fmt: skip
    price = model_price(arguments)
    with Client(provider, _cache(arguments), limits) as client:
        requests = [job.asking.request(question) for question in questions]
        missing = sum(client.cached(request) is None for request in requests)
        if missing:
            print(_planned(job, questions, missing))
        asyncio.run(_ask(job, client, requests))
        if missing:
            print(report(client.figures, price))
        known = [client.cached(request) for request in requests]
        answers = [
            job.asking.answer(question, completion, arguments.model).as_json()
            for question, completion in zip(questions, known, strict=True)
            if completion is not None
        ]
    if answers:
        write_jsonl(job.path, answers)
    record["seconds"] = round(record["seconds"] + client.figures.seconds, 3)
    record["remote"], record["price"] = client.figures.as_json(), price and asdict(price)
    if len(answers) == len(questions):
        record = ended(record, len(answers))
    write_json(run_file(job.path), record)
    return len(questions) - len(answers)


async def _ask(job: Job, client: Any, requests: Sequence[Any]) -> None:
    from tqdm import tqdm

    from ..remote.client import Reply

    questions = {request.item: question for request, question in zip(requests, job.suite.questions, strict=True)}
    replies, started = 0, time.monotonic()
    try:
        with tqdm(total=len(requests), unit="question", dynamic_ncols=True) as bar:
            async for result in client.ask(requests):
                question = questions[result.request.item]
                if isinstance(result, Reply):
                    replies += 1
                    _count(job, question, result.completion)
                else:
                    job.failures[str(question.question_id)] = result.reason
                    if not replies and len(job.failures) >= ALL_REFUSED:
                        raise InputError(f"none of {len(job.failures)} requests was answered: {result.reason}")
                bar.update()
                rate = 60 * client.figures.responses / (time.monotonic() - started)
                bar.set_postfix_str(f"{rate:.0f} questions/min, {job.tally.describe()}", refresh=False)
    finally:
        await client.provider.close()


def _count(job: Job, question: Question, completion: Any) -> None:
    asking = job.asking
    response = read(completion.text, job.suite.image_size(question), asking.convention, asking.sent(question))
    job.tally.add(question, response)
    job.cut += completion.finish in FINISHED_AT_LIMIT
    job.doubts.add(response, asking.convention, asking.sent(question))


# --- what is said ---------------------------------------------------------------------------------------------------


def _planned(job: Job, questions: Sequence[Question], requests: int, runs: int = 1) -> str:
    """What `requests` will take; they ask each question once in a run."""
    arguments = job.arguments
    protocol = PROTOCOLS[arguments.provider]
    tokens = sum(job.asking.tokens(question, protocol) for question in questions) / len(questions) * requests
    each = EXPECTED_TOKENS[job.asking.reasoning]
    of_runs = f" in {runs} runs" if runs > 1 else ""
    head = f"{len(questions)} questions{of_runs}, {requests} requests to {arguments.provider} {arguments.model}"
    return f"{head}\n{estimate(arguments, requests, tokens, each, model_price(arguments))}"


def _dry_run(jobs: Sequence[Job]) -> None:
    """What it would take, and the first request as it would be sent; nothing is written."""
    from ..remote.client import cached_key, read_cached
    from ..utils.files import JsonlIndex

    with JsonlIndex(_cache(jobs[0].arguments), cached_key) as lookup:
        missing = sum(
            job.arguments.overwrite or read_cached(lookup, job.asking.request(question), job.arguments.model) is None
            for job in jobs
            for question in job.suite.questions
        )
    print(_planned(jobs[0], jobs[0].suite.questions, missing, len(jobs)))
    first = jobs[0].suite.questions[0]
    width, height = jobs[0].asking.sent(first)
    print(f"\nthe first request, with {first.image} in {width} x {height} pixels:\n{jobs[0].asking.text(first)}")


def _finish(jobs: Sequence[Job], unanswered: int) -> int:
    for job in jobs:
        print(f"{job.path}: {job.tally.answers} answers, {job.tally.describe()}")
        if job.cut:
            print(f"  {job.cut} answers were cut at the limit of output tokens: give more --max-output-tokens")
        if doubt := job.doubts.warning(job.asking.convention.name):
            print(f"  {doubt} (--convention names another way)")
    if unanswered:
        reasons = Counter(reason for job in jobs for reason in job.failures.values())
        why = "; ".join(f"{count} times {reason}" for reason, count in reasons.most_common(3))
        raise InputError(
            f"{unanswered} questions got no answer ({why}); what was answered is in "
            f"{', '.join(str(job.path) for job in jobs)} and the cache: the same command asks for the rest"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
