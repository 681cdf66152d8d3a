"""What every command that asks a remote model shares: its flags, the estimate before, the report after."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.command import InputError

if TYPE_CHECKING:
    from .client import Figures
    from .cost import Price

_AT_LEAST = {"concurrency": 1, "tries": 1, "max_side": 32, "max_new_tokens": 1, "temperature": 0}
_ABOVE_0 = ("requests_per_minute", "tokens_per_minute", "timeout", "seconds_per_answer")


def add_remote_flags(group: Any) -> None:
    """Add the flags of a remote model to a parser or a group; the command calls `check_remote` after parsing."""
    add = group.add_argument
    add("--base-url", help="another server with OpenAI's protocol, such as http://localhost:8000/v1")
    add("--dry-run", action="store_true", help="print the estimate only; needs no key and no network")
    add("--concurrency", type=int, default=32, help="requests at a time")
    add("--requests-per-minute", type=float, help="upper limit, retries not counted")
    add("--tokens-per-minute", type=float, help="upper limit of input tokens")
    add("--timeout", type=float, default=120.0, help="seconds that one try waits for data")
    add("--tries", type=int, default=12, help="tries of one request when the network or the server fails")
    add("--max-new-tokens", type=int, help="limit of an answer (default: the provider's)")
    add("--thinking-budget", type=int, help="tokens of hidden thought (Gemini; 0: none where possible)")
    add("--max-side", type=int, default=1024, help="pixels of the longer side of a picture as it is sent")
    add("--cache", type=Path, help="file of responses (default: beside the output, .cache.jsonl)")
    add("--prices", type=Path, help="YAML of prices (default: configs/api/prices.yaml if it exists)")
    add("--price-in", type=float, help="dollars per million input tokens")
    add("--price-out", type=float, help="dollars per million output tokens")
    add("--seconds-per-answer", type=float, default=5.0, help="assumption of the time estimate")


def check_remote(arguments: Namespace) -> None:
    """InputError names a flag of `add_remote_flags` that is out of range."""
    for name in (*_AT_LEAST, *_ABOVE_0):
        value, least = getattr(arguments, name, None), _AT_LEAST.get(name)
        if value is not None and not (value > 0 if least is None else least <= value < float("inf")):
            limit = "above 0" if least is None else f"at least {least}"
            raise InputError(f"--{name.replace('_', '-')} must be {limit}, not {value}")


def server_address(protocol: str, base_url: str | None) -> str | None:
    """The server's address, which is part of a model's name in a cache; None for the provider's own.

    InputError if it holds a password or a query, which would be written into caches and records.
    """
    address = base_url or (os.environ.get("OPENAI_BASE_URL") if protocol == "openai" else None)  # as the SDK does
    if address and ("@" in address or "?" in address):
        raise InputError("the server's address holds a password or a query. Keys come from the environment only")
    return address.rstrip("/") if address else None


def model_price(arguments: Namespace) -> Price | None:
    """Return the price of the model by flags or price list, None if unknown."""
    from .cost import PRICES, find_price

    listed = arguments.prices or (PRICES if PRICES.is_file() else None)
    return find_price(arguments.model, listed, (arguments.price_in, arguments.price_out))


def estimate(arguments: Namespace, requests: int, tokens_in: float, tokens_each: int, price: Price | None) -> str:
    """Describe the tokens, time and dollars of `requests`; `tokens_each` of an answer, without hidden thoughts."""
    from .cost import PRICES, dollars, hours

    concurrency, rate = arguments.concurrency, arguments.requests_per_minute
    tokens_out, seconds = requests * tokens_each, arguments.seconds_per_answer
    if price is None:
        cost = f"unknown for {arguments.model}: give --price-in and --price-out, or add a line to {PRICES}"
    else:
        cost = f"about ${dollars(price, tokens_in, tokens_out):,.2f} at {_rates(price)}"
    at_most = f", at most {rate:g} a minute" if rate else ""
    duration = format_duration(hours(requests, concurrency, seconds, rate))
    return (
        f"  tokens   about {tokens_in:,.0f} in, {tokens_out:,} out ({tokens_each} an answer, without hidden thoughts)\n"
        f"  time     about {duration} with {concurrency} at a time, {seconds:g} s an answer{at_most}\n"
        f"  price    {cost}"
    )


def report(figures: Figures, price: Price | None) -> str:
    """Describe what was asked and what it took."""
    speed = figures.responses / figures.seconds if figures.seconds else 0.0
    lines = [
        f"{figures.responses} responses to {figures.requests} requests in {format_duration(figures.seconds / 3600)} "
        f"({speed:.1f} a second), {figures.cached} from the cache",
        f"  tokens   {figures.tokens_in:,} in, {figures.tokens_out:,} out, as the provider counts them",
    ]
    lines += [f"  error    {count} times: {status}" for status, count in figures.http_errors.most_common()]
    lines += [f"  failed   {count} times: {reason}" for reason, count in figures.failures.most_common(10)]
    if price is not None:
        from .cost import dollars

        lines.append(f"  price    ${dollars(price, figures.tokens_in, figures.tokens_out):,.2f} at {_rates(price)}")
    return "\n".join(lines)


def _rates(price: Price) -> str:
    return f"${price.input:g} in, ${price.output:g} out per million (as of {price.as_of}: check it)"


def format_duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 2 else f"{hours * 3600:.1f} s"
