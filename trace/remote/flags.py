"""What every command that asks a remote model has in common: its flags, what it says before, and what it says after."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.command import InputError

if TYPE_CHECKING:
    from .cost import Price

_ADDRESS = {"openai": "OPENAI_BASE_URL", "gemini": "GOOGLE_GEMINI_BASE_URL"}  # where the SDKs look, by protocol
_AT_LEAST = {"concurrency": 1, "tries": 1, "max_side": 32}
_ABOVE_0 = ("requests_per_minute", "tokens_per_minute", "timeout", "first_wait", "seconds_per_answer")


def add_remote_flags(group: Any) -> None:
    """The flags of a remote model, into a parser or a group of one; whoever has them calls `check_remote`."""
    group.add_argument("--base-url", help="another server that speaks the protocol, such as http://localhost:8000/v1")
    group.add_argument(
        "--dry-run", action="store_true", help="only say what it would take; needs no key and no network"
    )
    group.add_argument("--concurrency", type=int, default=32, help="requests at a time")
    group.add_argument("--requests-per-minute", type=float, help="at most so many")
    group.add_argument("--tokens-per-minute", type=float, help="at most so many, of input")
    group.add_argument("--timeout", type=float, default=120.0, help="seconds for one try")
    group.add_argument("--tries", type=int, default=8, help="of one request, when the network or the server fails")
    group.add_argument("--first-wait", type=float, default=1.0, help="seconds before the second try; each wait doubles")
    group.add_argument("--max-output-tokens", type=int, help="default: the provider's")
    group.add_argument("--thinking-budget", type=int, help="tokens of hidden thought (Gemini; 0: none where possible)")
    group.add_argument(
        "--max-side", type=int, default=1024, help="pictures are sent with at most so many pixels a side"
    )
    group.add_argument("--cache", type=Path, help="file of responses (default: beside the output, .cache.jsonl)")
    group.add_argument("--prices", type=Path, help="YAML of prices (default: configs/api/prices.yaml if it is there)")
    group.add_argument("--price-in", type=float, help="dollars for a million tokens of input")
    group.add_argument("--price-out", type=float, help="dollars for a million tokens of output")
    group.add_argument("--seconds-per-answer", type=float, default=5.0, help="what the time estimate assumes")


def check_remote(arguments: Namespace) -> None:
    """InputError names a flag of `add_remote_flags` that is out of range."""
    for name, least in _AT_LEAST.items():
        if getattr(arguments, name) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(arguments, name)}")
    for name in _ABOVE_0:
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, not {value}")
    temperature = getattr(arguments, "temperature", None)
    if temperature is not None and not 0 <= temperature < math.inf:
        raise InputError(f"--temperature must be at least 0, not {temperature}")
    if arguments.max_output_tokens is not None and arguments.max_output_tokens < 1:
        raise InputError(f"--max-output-tokens must be at least 1, not {arguments.max_output_tokens}")


def server_address(protocol: str, base_url: str | None) -> str | None:
    """The address that is asked, which belongs to a model's name in a cache; None for the provider's own."""
    found = base_url or os.environ.get(_ADDRESS[protocol])
    return found.rstrip("/") if found else None


def model_price(arguments: Namespace) -> Price | None:
    """The price of the model that is asked; None where none is known."""
    from .cost import PRICES, find_price

    listed = arguments.prices or (PRICES if PRICES.is_file() else None)
    return find_price(arguments.model, listed, (arguments.price_in, arguments.price_out))


def estimate(arguments: Namespace, requests: int, tokens_in: float, tokens_each: int, price: Price | None) -> str:
    """What `requests` will take, roughly: tokens, time and dollars, in lines that follow a line of the caller's.

    Args:
        tokens_each: of an answer, hidden thoughts left out.
    """
    from .cost import PRICES, dollars, hours

    tokens_out = requests * tokens_each
    took = hours(requests, arguments.concurrency, arguments.seconds_per_answer, arguments.requests_per_minute)
    took = max(took, min(requests, 1) * arguments.seconds_per_answer / 3600)  # fewer requests than go at a time
    at_most = f", at most {arguments.requests_per_minute:g} a minute" if arguments.requests_per_minute else ""
    if price is None:
        cost = f"unknown for {arguments.model}: give --price-in and --price-out, or a line in {PRICES}"
    else:
        cost = f"roughly ${dollars(price, tokens_in, tokens_out):,.2f} at {_rates(price)}"
    return "\n".join(
        [
            f"  tokens   roughly {tokens_in:,.0f} in, {tokens_out:,} out ({tokens_each} an answer, without hidden thoughts)",
            f"  time     roughly {spoken_time(took)} with {arguments.concurrency} at a time, "
            f"{arguments.seconds_per_answer:g} s an answer{at_most}",
            f"  price    {cost}",
        ]
    )


def report(figures: Any, price: Price | None) -> str:
    """What was asked and what it took, by `api.Figures`."""
    speed = figures.responses / figures.seconds if figures.seconds else 0.0
    lines = [
        f"{figures.responses} responses to {figures.requests} requests in {spoken_time(figures.seconds / 3600)} "
        f"({speed:.1f} a second), {figures.cached} known before",
        f"  tokens   {figures.tokens_in:,} in, {figures.tokens_out:,} out, as the provider counts them",
    ]
    lines += [f"  tried again  {count} times: {reason}" for reason, count in figures.retries.most_common()]
    lines += [f"  failed       {count} times: {reason}" for reason, count in figures.failures.most_common(10)]
    if price is not None:
        from .cost import dollars

        lines.append(f"  price    ${dollars(price, figures.tokens_in, figures.tokens_out):,.2f} at {_rates(price)}")
    return "\n".join(lines)


def _rates(price: Price) -> str:
    return f"${price.input:g} in, ${price.output:g} out a million (as of {price.as_of}: check it)"


def spoken_time(hours_taken: float) -> str:
    if hours_taken >= 1:
        return f"{hours_taken:.1f} h"
    minutes = hours_taken * 60
    return f"{minutes:.0f} min" if minutes >= 2 else f"{minutes * 60:.1f} s"
