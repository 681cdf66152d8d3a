"""Estimates of what asking a remote model takes: tokens, money, time, by the providers' published rules of thumb.

Prices change, so they come from a file that says when and where each was read (configs/api/prices.yaml), or from flags.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from ..utils.command import InputError
from ..utils.config import Field, config_class, read_config

PRICES = Path("configs/api/prices.yaml")


@config_class
class Price:
    """US dollars for a million tokens; thoughts count as output. `as_of` and `source`: when and where it was read."""

    model: str
    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]
    as_of: str
    source: str


@config_class
class PriceList:
    prices: tuple[Price, ...]


def find_price(model: str, path: Path | None, given: tuple[float | None, float | None]) -> Price | None:
    """Return the price of a model: as given by flags (both or none), else as listed in `path`, else None."""
    if given[0] is not None and given[1] is not None:
        return Price(model, given[0], given[1], "now", "the command line")
    if given != (None, None):
        raise InputError("--price-in and --price-out belong together: dollars per million tokens in and out")
    if path is None:
        return None
    return next((price for price in read_config(PriceList, path).prices if price.model == model), None)


def dollars(price: Price, tokens_in: float, tokens_out: float) -> float:
    return (price.input * tokens_in + price.output * tokens_out) / 1e6


def text_tokens(text: str) -> int:
    """About four characters of English a token, by both providers' documentation."""
    return math.ceil(len(text) / 4)


def image_tokens(provider: str, width: int, height: int) -> int:
    """Return the tokens of one image; other models and servers count differently.

    Gemini: 258 up to 384 x 384 pixels, else 258 for each tile of 768 x 768 (its documentation for 2.x models). OpenAI:
    GPT-4o's tiles, 85 + 170 for each 512 x 512 after scaling to 2048, then to 768 on the short side.
    """
    width, height = max(1, width), max(1, height)
    if provider == "gemini":
        return 258 if max(width, height) <= 384 else 258 * math.ceil(width / 768) * math.ceil(height / 768)
    scale = min(1.0, 2048 / max(width, height))
    scale *= min(1.0, 768 / (min(width, height) * scale))
    return 85 + 170 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)


def hours(requests: float, concurrency: int, seconds_each: float, requests_per_minute: float | None) -> float:
    """Return how long `requests` take, by the slower of the two limits; at least the time of one answer."""
    a_second = min(
        concurrency / seconds_each, float("inf") if requests_per_minute is None else requests_per_minute / 60
    )
    return max(requests / a_second, seconds_each if requests else 0.0) / 3600
