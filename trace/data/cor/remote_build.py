"""A training set's reasoning from a remote model: estimate, ask, write.

The samples are read three times, one at a time: to count what is still to be asked, to ask it, and to write the result
in the order of the data from the cache of responses.
"""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ...core.records import Sample
from ...remote.client import Client, Limits, Provider, Request, cached_key, read_cached
from ...remote.cost import Price
from ...remote.flags import estimate, model_price, report, server_address
from ...remote.providers import Options, make_provider
from ...utils.command import Incomplete
from ...utils.files import JsonlIndex
from .checks import Rejected, Rules
from .prompt import VERSION, Writing
from .remote import EXPECTED_TOKENS, Asking, Conversations, Plan, planned
from .tasks import Rejects, Task, tasks_of

Samples = Callable[[], Iterable[Sample]]
WORTH_PROCESSES = 1000  # requests


def build(args: Namespace, samples: Samples, rejects: Rejects) -> Mapping[str, Any] | None:
    """Ask for what is missing and write OUT; returns the counts, None after a dry run."""
    from .build import write_all

    options = Options(
        temperature=args.temperature,
        max_output_tokens=args.max_output_tokens,
        thinking_budget=args.thinking_budget,
        structured=not args.no_structured_output,
    )
    writing = Writing(args.image_folder, _version(args, options), Rules(args.coordinates), args.decimals, args.max_side)
    price = model_price(args)
    cache = args.cache or args.out.with_name(args.out.name + ".cache.jsonl")
    if args.dry_run:
        with JsonlIndex(cache, cached_key) as lookup:
            known = Conversations(lambda request: read_cached(lookup, request, args.model), writing, args.ask_again)
            plan = _plan(args, samples, known)
        print(_estimate(args, plan, price))
        _show(args, plan)
        return None
    make = partial(make_provider, args.reasoner, args.model, args.base_url, options, args.concurrency)
    limits = Limits(
        args.concurrency,
        args.requests_per_minute,
        args.tokens_per_minute,
        args.timeout,
        args.tries,
        args.first_wait,
    )
    with Client(make(), cache, limits) as client:
        conversations = Conversations(client.cached, writing, args.ask_again)
        plan = _plan(args, samples, conversations)
        print(_estimate(args, plan, price), flush=True)
        asking = Asking(conversations)
        senders: Provider = client.provider
        if plan.requests:
            senders = _senders(args, client.provider, make, plan.requests)
            asyncio.run(_ask(asking, samples, client, plan, senders))
            print(report(client.figures, price))

        def steps_of(task: Task) -> Mapping[str, str]:
            state = conversations.state(task)
            if isinstance(state, Rejected):
                raise state
            if isinstance(state, Request):
                raise ValueError(asking.failures.get(task.sample.id, "it was not asked"))
            return state

        figures = {"prompt": writing.version, "remote": client.figures.as_json(), "price": price and asdict(price)}
        summary = write_all(args, tasks_of(samples(), rejects.add), steps_of, rejects, figures)
    given_up = getattr(senders, "given_up", {})
    if given_up:
        raise Incomplete(
            f"{args.out} lacks {len(given_up)} samples whose requests ended the process that sent them: "
            + "; ".join(f"{name}: {reason}" for name, reason in islice(given_up.items(), 5))
            + ". All others are written; the same command asks again"
        )
    return summary


def _senders(args: Namespace, provider: Provider, make: Callable[[], Provider], requests: int) -> Provider:
    """Who sends: this process, or, where it pays (each takes a second to start), several."""
    count = args.processes
    if count is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(cores, args.concurrency // 8) if requests >= WORTH_PROCESSES else 1
    if count <= 1:
        return provider
    from ...remote.crew import Crew

    return Crew(make, provider.model, provider.place, count)


def _version(args: Namespace, options: Options) -> str:
    """The prompt's version with the options that shape an answer, and the server where it is not the provider's."""
    parts = {"temperature": options.temperature, "thinking": options.thinking_budget, "side": args.max_side}
    parts |= {"limit": options.max_output_tokens, "coordinates": args.coordinates or None}
    parts["free-form"] = not options.structured or None
    parts["server"] = server_address(args.reasoner, args.base_url)
    return " ".join([VERSION, *(f"{name}={value}" for name, value in parts.items() if value is not None)])


def _plan(args: Namespace, samples: Samples, conversations: Conversations) -> Plan:
    from tqdm import tqdm

    tasks = tasks_of(samples(), lambda *_: None)
    with tqdm(tasks, desc="counting", unit=" samples", leave=False) as bar:
        return planned(bar, conversations, args.reasoner)


async def _ask(asking: Asking, samples: Samples, client: Client, plan: Plan, senders: Provider) -> None:
    from tqdm import tqdm

    used = {client.provider, senders}
    client.provider = senders
    try:
        with tqdm(total=plan.requests, desc="asking", unit=" samples", smoothing=0.02) as bar:

            def settled() -> None:
                bar.update()
                figures = client.figures
                bar.set_postfix(failed=len(asking.failures), retries=figures.retries.total(), refresh=False)

            await asking.run(tasks_of(samples(), lambda *_: None), client, settled)
    finally:
        for provider in used:
            await provider.close()


def _estimate(args: Namespace, plan: Plan, price: Price | None) -> str:
    if not plan.requests:
        return f"{plan.samples} samples, all of them asked already: nothing to ask"
    asked = f"{plan.samples} samples, {plan.requests} requests to {args.reasoner} {args.model}, and what is asked again"
    return asked + "\n" + estimate(args, plan.requests, plan.tokens_in, EXPECTED_TOKENS, price)


def _show(args: Namespace, plan: Plan) -> None:
    """The first request as it would be sent: its text here, its picture in a file."""
    if plan.first is None:
        return
    print(f"\n--- the first request ({plan.first.item}) ---\n{plan.first.system}\n\n{plan.first.text}\n---")
    if plan.first.picture is not None:
        from ...utils.files import replacing

        path = args.out.with_name(args.out.name + ".example.jpg")
        picture = plan.first.picture()
        with replacing(path) as temporary:
            temporary.write_bytes(picture.data)
        print(f"its picture: {Path(path)}")
