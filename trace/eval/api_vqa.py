"""Answer the questions of a benchmark with a remote model: GPT-4o, Gemini, or a model served by vLLM or SGLang.

    python -m trace.eval.api_vqa --provider openai --model gpt-4o --data where2place --answers out/gpt-4o.jsonl
    python -m trace.eval.api_vqa --provider vllm --base-url http://localhost:8000/v1 --model trace-13b --reasoning \\
        --data where2place --answers out/trace.jsonl

Each model is asked and read in its own convention of coordinates. Keys come from OPENAI_API_KEY and GEMINI_API_KEY. Every
response is cached when it arrives: after a kill the same command continues, and nothing is asked or paid for twice.
"""

from __future__ import annotations

if not __package__:  # run by its path: the relative imports below need the installed name
    import runpy
    import sys

    del sys.path[0]  # this file's folder, whose modules must not be found under bare names
    runpy.run_module("trace_vlm.eval.api_vqa", run_name="__main__", alter_sys=True)

import argparse
import asyncio
import hashlib
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..core.conventions import CONVENTIONS, Convention, ConventionCheck, convention, convention_of, read, sent_size
from ..core.images import FORMATS, is_turned, open_image
from ..core.prompts import FORMAT_SENTENCE, REASONING_SUFFIX, asks_yes_no, bare_instruction, question_text
from ..core.reasoning import FINAL_ANSWER
from ..core.records import FINISHED_AT_LIMIT, Answer, Question, QuestionId
from ..inference.predict import prompt_template
from ..inference.predictor import PLACEHOLDER
from ..remote.flags import add_remote_flags, check_remote, estimate, model_price, report, server_address
from ..utils.command import InputError, Parser, output_folder, run
from ..utils.files import sha256, write_json, write_jsonl
from . import answering
from .benchmark import Benchmark, run_file

if TYPE_CHECKING:
    from ..remote.client import Client, Completion, Picture, Request

PROTOCOLS = {"openai": "openai", "gemini": "gemini", "vllm": "openai", "sglang": "openai"}  # by provider
OWN_SERVERS = ("vllm", "sglang")
ALL_REFUSED = 8  # failed requests without any answer, after which the command stops
WORDING = "vqa-1"  # version of every word below, part of the cache's key: changed wording is asked anew
EXPECTED_TOKENS = {False: 60, True: 250}  # of an answer without or with reasoning, for the estimate
ANSWER_LAST = f'Begin the final answer with "{FINAL_ANSWER}".'
JPEG_QUALITY = 95  # of pictures that have to be encoded again
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}  # accepted by every provider


def main(argv: Sequence[str] | None = None) -> int:
    arguments = answering.parse_answering_flags(_parser(), argv)
    check_remote(arguments)
    if arguments.provider in OWN_SERVERS and not arguments.base_url:
        raise InputError(f"--provider {arguments.provider} needs --base-url, such as http://localhost:8000/v1")
    if arguments.prompt_template is not None and (arguments.reasoning or arguments.box):
        raise InputError("--prompt-template is the complete text of a question. Leave out --reasoning and --box")
    if arguments.provider == "gemini" and arguments.seed is not None:
        raise InputError("--seed: the Gemini API takes no seed at its OpenAI-compatible address. Leave it out")
    template, benchmark = prompt_template(arguments), answering.load_questions(arguments)
    how = _choose_convention(arguments)
    # before the first request, not after an hour
    broken = answering.find_broken_images(benchmark, benchmark.questions, arguments.skip_broken)
    skipped = [one.question_id for one in benchmark.questions if str(one.question_id) in broken]
    asked = tuple(question for question in benchmark.questions if str(question.question_id) not in broken)
    benchmark = replace(benchmark, questions=asked)
    server = server_address(PROTOCOLS[arguments.provider], arguments.base_url)
    runs = []
    for number in range(1, arguments.runs + 1):
        path = answering.run_path(arguments.answers, number, arguments.runs)
        seed = None if arguments.seed is None else arguments.seed + number - 1
        run_number = number if arguments.runs > 1 else 0
        runs.append(RemoteRun(arguments, benchmark, how, template, server, path, run_number, seed, skipped))
    if arguments.dry_run:
        _dry_run(runs)
        return 0
    output_folder(arguments.answers.parent)
    if arguments.overwrite:
        _remove_answers(runs)
    unanswered = sum(remote_run.write_answers() for remote_run in runs)
    for remote_run in runs:
        print(remote_run.describe())
    if unanswered:
        failures = Counter(reason for remote_run in runs for reason in remote_run.failures.values())
        reasons = "; ".join(f"{count} times {reason}" for reason, count in failures.most_common(3))
        paths = ", ".join(str(remote_run.path) for remote_run in runs)
        raise InputError(f"{unanswered} questions got no answer ({reasons}): {paths}. The same command asks them again")
    return 0


def _parser() -> Parser:
    parser = Parser(description="Answer the questions of a benchmark with a remote model.", examples=__doc__)
    add = parser.add_argument
    add("--provider", choices=PROTOCOLS, required=True, help="vllm and sglang need --base-url")
    add("--model", required=True, help="the provider's name of the model")
    answering.add_answering_flags(parser)
    add("--convention", choices=CONVENTIONS, help="how the model writes coordinates (default: that of its family)")
    add("--box", action="store_true", help="ask for a box instead of points; all of its pixels count")
    add("--reasoning", action=argparse.BooleanOptionalAction, default=False, help="ask for reasoning before the points")
    add("--prompt-template", type=Path, metavar="FILE", help=f"the complete text of a question, with {PLACEHOLDER}")
    add("--temperature", type=_temperature, default=0.0, help="0 is greedy; `default` is the provider's own")
    add("--seed", type=int, help="sent to the server (not Gemini's); run i gets seed + i - 1")
    add_remote_flags(parser.add_argument_group("the server"))
    return parser


def _temperature(text: str) -> float | None:
    if text == "default":
        return None
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 2:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is neither a temperature from 0 to 2 nor `default`")


def _choose_convention(arguments: argparse.Namespace) -> Convention:
    """The given convention, or that of the model's family; for an unknown family `unit` with a warning."""
    name = arguments.model
    known = convention(arguments.convention) if arguments.convention else convention_of(name)
    how = known or CONVENTIONS["unit"]
    if known is None:
        print(
            f"warning: how {name} writes coordinates is not known; assumed: {how.name} ({how.summary}). Name it with "
            f"--convention ({', '.join(CONVENTIONS)})", file=sys.stderr,
        )  # fmt: skip
    if arguments.box and not how.box:
        raise InputError(f"models of the convention {how.name} write no boxes. Leave out --box")
    print(f"{name} is asked and read in the convention {how.name}{'' if known else ', assumed'}: {how.summary}")
    return how


def _remove_answers(runs: Sequence[RemoteRun]) -> None:
    """Remove the answers and the cached responses they were made of; a named cache keeps those of other answers."""
    from ..remote.client import remove_cached

    arguments = runs[0].arguments
    if arguments.cache is None:
        runs[0].cache.unlink(missing_ok=True)
    else:
        requests = (remote_run.request(one) for remote_run in runs for one in remote_run.benchmark.questions)
        remove_cached(arguments.cache, {request.key(arguments.model) for request in requests})
    for remote_run in runs:
        remote_run.path.unlink(missing_ok=True)
        run_file(remote_run.path).unlink(missing_ok=True)


def _dry_run(runs: Sequence[RemoteRun]) -> None:
    """Print what the requests would cost, and the first one as it would be sent; nothing is written."""
    from ..remote.client import cached_key, read_cached
    from ..utils.jsonl_index import JsonlIndex

    first, arguments = runs[0], runs[0].arguments
    requests = (remote_run.request(question) for remote_run in runs for question in remote_run.benchmark.questions)
    with JsonlIndex(first.cache, cached_key) as cache:
        missing = sum(arguments.overwrite or read_cached(cache, one, arguments.model) is None for one in requests)
    print(first.estimate(missing, len(runs)))
    question = first.benchmark.questions[0]
    width, height = first.sent_size(question)
    print(f"\nthe first request, with {question.image} in {width} x {height} pixels:\n{first.text(question)}")


@dataclass(slots=True)
class RemoteRun:
    """One answer file of a remote model: how its questions are asked, and the results so far."""

    arguments: argparse.Namespace
    benchmark: Benchmark  # without the skipped questions
    convention: Convention
    template: str | None
    server: str | None  # its address; None for the provider's own
    path: Path
    run: int  # from 1; 0 for a single run
    seed: int | None
    skipped: Sequence[QuestionId]  # not asked, because their images are broken
    failures: dict[str, str] = field(default_factory=dict)  # question id -> reason
    cut: int = 0
    doubts: ConventionCheck = field(default_factory=ConventionCheck)
    accuracy: answering.RunningAccuracy = field(init=False)

    def __post_init__(self) -> None:
        self.accuracy = answering.RunningAccuracy(self.benchmark)

    @property
    def cache(self) -> Path:
        """The file of responses, shared by all runs."""
        return Path(self.arguments.cache or self.arguments.answers.with_suffix(".cache.jsonl"))

    def text(self, question: Question) -> str:
        """Return the text of a request: the question's own words, then the format of the answer."""
        instruction = FORMAT_SENTENCE.split(bare_instruction(question.text))[0].rstrip()
        if self.template is not None:
            return self.template.replace(PLACEHOLDER, instruction)
        if asks_yes_no(instruction):
            return instruction
        if self.convention.name == "unit" and not self.arguments.box:  # what the project's models are trained on
            return question_text(instruction, self.arguments.reasoning)
        reasoning = [REASONING_SUFFIX, ANSWER_LAST] if self.arguments.reasoning else []
        how = self.convention.box if self.arguments.box else self.convention.points
        return " ".join([instruction, *reasoning, how])

    def sent_size(self, question: Question) -> tuple[int, int]:
        return sent_size(self.benchmark.image_size(question), self.arguments.max_side, self.convention)

    def options(self) -> str:
        """Name what shapes an answer beside text, picture, model and server; part of the cache's key."""
        values = {"temperature": self.arguments.temperature, "limit": self.arguments.max_new_tokens,
                  "thinking": self.arguments.thinking_budget}  # fmt: skip
        return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)

    def request(self, question: Question) -> Request:
        from ..remote.client import Request

        path, size = self.benchmark.image_path(question), self.sent_size(question)
        picture_name = f"{question.image} {sha256(path)[:16]} {size[0]}x{size[1]}"
        item = f"{question.question_id} run {self.run} seed {self.seed}"
        version = f"{WORDING} {self.options()}" + (f" server={self.server}" if self.server else "")
        return Request(item, version, self.text(question), "", _picture_maker(path, size), picture_name)

    def answer(self, question: Question, request: Request, completion: Completion) -> Answer:
        """Return the reply as a record; the metadata says how to read it and why it ended."""
        metadata = {
            "convention": self.convention.name, "sent": list(self.sent_size(question)), "finish": completion.finish,
            "tokens_in": completion.tokens_in, "tokens_out": completion.tokens_out,
        }  # fmt: skip
        model = self.arguments.model
        answer_id = hashlib.sha256(request.key(model)).hexdigest()[:22]
        return Answer(question.question_id, request.text, completion.text, answer_id, model, question.category,
                      seed=self.seed, run=self.run, metadata=metadata)  # fmt: skip

    def write_answers(self) -> int:
        """Ask what was not answered yet, write the file in the order of the questions, and return how many are missing."""
        from ..remote.client import Client, Limits
        from ..remote.providers import OpenAIChat, Options

        arguments, questions = self.arguments, self.benchmark.questions
        settings = {  # a file is only continued under the same ones
            "provider": arguments.provider, "model": arguments.model, "server": self.server or "the provider's own",
            "convention": self.convention.name, "box": arguments.box, "max_side": arguments.max_side,
            "options": self.options(), "seed": self.seed,
            **answering.common_settings(arguments, self.benchmark, self.run),
        }  # fmt: skip
        answering.answered_before(self.path, settings, questions)
        record = answering.start_record("api_vqa", self.path, self.benchmark, arguments, settings, continued=True)
        record["skipped"] = self.skipped
        options = Options(arguments.temperature, arguments.max_new_tokens, self.seed, arguments.thinking_budget)
        protocol, price = PROTOCOLS[arguments.provider], model_price(arguments)
        server = arguments.model, arguments.base_url
        provider = OpenAIChat(protocol, *server, options, arguments.timeout, arguments.tries)
        limits = Limits(arguments.concurrency, arguments.requests_per_minute, arguments.tokens_per_minute)
        with Client(provider, self.cache, limits) as client:
            requests = [self.request(question) for question in questions]
            missing = sum(client.cached(request) is None for request in requests)
            if missing:
                print(self.estimate(missing))
            asyncio.run(self._ask(client, requests))
            if missing:
                print(report(client.figures, price))
            answers = [
                self.answer(question, request, completion).as_json()
                for question, request in zip(questions, requests, strict=True)
                if (completion := client.cached(request)) is not None
            ]
        if answers:
            write_jsonl(self.path, answers)
        record["seconds"] = round(record["seconds"] + client.figures.seconds, 3)
        record["remote"], record["price"] = client.figures.as_json(), price and asdict(price)
        complete = len(answers) == len(questions)
        write_json(run_file(self.path), answering.finish_record(record, len(answers)) if complete else record)
        return len(questions) - len(answers)

    async def _ask(self, client: Client, requests: Sequence[Request]) -> None:
        from tqdm import tqdm

        from ..remote.client import Reply

        questions = {request.item: one for request, one in zip(requests, self.benchmark.questions, strict=True)}
        replies, started = 0, time.monotonic()
        try:
            with tqdm(total=len(requests), unit="question", dynamic_ncols=True) as bar:
                async for result in client.ask(requests):
                    question = questions[result.request.item]
                    if isinstance(result, Reply):
                        replies += 1
                        size, completion = self.sent_size(question), result.completion
                        response = read(completion.text, self.benchmark.image_size(question), self.convention, size)
                        self.accuracy.add(question, response)
                        self.cut += completion.finish in FINISHED_AT_LIMIT
                        self.doubts.add(response, self.convention, size)
                    else:
                        self.failures[str(question.question_id)] = result.reason
                        if not replies and len(self.failures) >= ALL_REFUSED:
                            raise InputError(
                                f"none of {len(self.failures)} requests to {client.provider.address} was answered "
                                f"({result.reason}). Check the address, the key and the model's name"
                            )
                    bar.update()
                    rate = 60 * client.figures.responses / (time.monotonic() - started)
                    bar.set_postfix_str(f"{rate:.0f} questions/min, {self.accuracy.describe()}", refresh=False)
        finally:
            await client.provider.close()

    def estimate(self, requests: int, runs: int = 1) -> str:
        """Describe the tokens, time and price of `requests`, each question once per run."""
        from ..remote.cost import image_tokens, text_tokens

        arguments, questions, protocol = self.arguments, self.benchmark.questions, PROTOCOLS[self.arguments.provider]
        tokens = sum(text_tokens(self.text(one)) + image_tokens(protocol, *self.sent_size(one)) for one in questions)
        of_runs = f" in {runs} runs" if runs > 1 else ""
        head = f"{len(questions)} questions{of_runs}, {requests} requests to {arguments.provider} {arguments.model}"
        expected, price = EXPECTED_TOKENS[arguments.reasoning], model_price(arguments)
        return f"{head}\n{estimate(arguments, requests, tokens / len(questions) * requests, expected, price)}"

    def describe(self) -> str:
        """Return the result of the run, with warnings about cut answers and a doubtful convention."""
        lines = [f"{self.path}: {self.accuracy.answers} answers, {self.accuracy.describe()}"]
        if self.cut:
            lines.append(f"  {self.cut} answers were cut at the limit of output tokens: raise --max-new-tokens")
        if doubt := self.doubts.warning(self.convention.name):
            lines.append(f"  {doubt} (--convention names another one)")
        return "\n".join(lines)


def _picture_maker(path: Path, size: tuple[int, int]) -> Callable[[], Picture]:
    """Encode a picture when it is needed: the file itself if nothing has to change, otherwise a resized JPEG."""
    from ..remote.client import Picture

    def make() -> Picture:
        picture = open_image(path)  # also checks that the file is complete
        with Image.open(path, formats=FORMATS) as image:
            media_type = MEDIA_TYPES.get(image.format or "")
        # not every server applies a picture's EXIF orientation
        if media_type and not is_turned(path) and picture.size == size:
            return Picture(path.read_bytes(), media_type)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return Picture(buffer.getvalue())

    return make


if __name__ == "__main__":
    raise SystemExit(run(main))
