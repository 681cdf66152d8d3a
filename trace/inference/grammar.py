"""Answers of a given form: what a model may write is limited by a grammar, through llguidance.

With reasoning the form is the template of `reasoning`: its headings in their order, a line of the model's own words
under each, and behind "Final Answer" a list in `points`' canonical writing. Without reasoning it is that list alone,
from the first token on. What only one continuation allows (headings, punctuation, the dot of a number) is forced: the
model reads it without being asked. An answer that has this form anyway is left as it is.

The steps may be as long as the budget of new tokens lets them; when the rest of the template would no longer fit, a
step is ended, so that an answer always holds its points.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..core.reasoning import FINAL_ANSWER, HEADINGS, PREAMBLE, STEPS
from ..utils.command import InputError, install_hint

if TYPE_CHECKING:
    from torch import Tensor

MOST_POINTS = 50  # RoboPoint's data hold 1 to 50 points an image
HURRIED = 3  # tokens of a step for which there is no more room
SLACK = 2  # tokens by which a heading may be longer than counted: the words before it can change how it is cut

_NUMBER = r"(0\.[0-9]{1,4}|1\.0{1,4})"
_RULES = rf"""
point: /\({_NUMBER}, {_NUMBER}\)/
item: /\({_NUMBER}, {_NUMBER}(, {_NUMBER}, {_NUMBER})?\)/
"""
# The words that separate the steps' own words; an answer follows the prompt's last colon after a space.
_FIXED = [
    f"{before}{number}. **{HEADINGS[key]}:**"
    for number, (before, key) in enumerate(zip([f" {PREAMBLE}\n", "\n", "\n", "\n"], STEPS, strict=True), start=1)
]
_LINES = [fixed.rpartition("\n")[2] for fixed in _FIXED]
_LAST = f"\n\n{FINAL_ANSWER}\n"
_WORST, _WORST_BOX = "(0.4444, 0.4444), ", "(0.4444, 0.4444, 0.4444, 0.4444), "  # the most characters there can be


class Grammar:
    """The form of an answer, for one tokenizer and one budget of new tokens.

    Raises:
        InputError: llguidance is not installed, or the budget is too small for any answer.
    """

    def __init__(
        self, tokenizer: Any, vocabulary: int, reasoning: bool, num_points: int | None, max_new_tokens: int
    ) -> None:
        self.tokenizer, self.budget = _guidance_tokenizer(tokenizer, vocabulary), max_new_tokens
        self.points = _points(num_points)
        count = lambda text: len(self.tokenizer.tokenize_str(text)) + SLACK  # noqa: E731 (used here only)
        points = len(" [" + (_WORST * num_points if num_points else _WORST_BOX))  # at worst a token a character
        # What has to follow step i: the other headings with a few words each, and the points.
        self.reserves = [points + count(_LAST)]
        for fixed in reversed(_FIXED[1:]):
            self.reserves.insert(0, self.reserves[0] + count(fixed) + HURRIED)
        least = self.reserves[0] + count(_FIXED[0]) + HURRIED if reasoning else points
        if max_new_tokens < least:
            what = f"{num_points} points" if num_points else "an answer"
            raise InputError(f"{max_new_tokens} new tokens are too few for {what}: --max-new-tokens {least} or more")
        self.reasoning = reasoning
        self.whole = self._compile(0 if reasoning else len(_FIXED), None)
        self.endings = [self._compile(step, HURRIED) for step in range(1, len(_FIXED) + 1)] if reasoning else []

    def _compile(self, step: int, limit: int | None) -> str:
        """The grammar from the heading of `step` on (0 is the first, 4 the final answer), its steps at most `limit`."""
        import llguidance

        parts: list[str] = []
        for fixed in _FIXED[step:]:
            parts += [json.dumps(f"{fixed} "), "words"]
        parts.append(json.dumps(_LAST if self.reasoning else " "))
        words = f"words[max_tokens={limit}]" if limit else "words"
        text = rf"start: {' '.join(parts)} {self.points}{_RULES}{words}: /[^\s][^\n]*/" + "\n"
        return str(llguidance.LLMatcher.grammar_from_lark(text))

    def guide(self) -> Guide:
        return Guide(self)


def _points(num_points: int | None) -> str:
    if num_points is None:
        return rf'"[" item (", " item){{0,{MOST_POINTS - 1}}} "]"'
    more = rf' (", " point){{{num_points - 1}}}' if num_points > 1 else ""
    return f'"[" point{more} "]"'


class Guide:
    """One answer's way through a grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.matcher = _matcher(grammar, grammar.whole)
        self._used = 0
        self._text = b""
        self._hurried = not grammar.reasoning

    @property
    def finished(self) -> bool:
        return bool(self.matcher.is_stopped())

    def take(self, token: int) -> None:
        """The model chose this token."""
        self._advance([token])

    def forced(self) -> list[int]:
        """The tokens that have to come next, already taken."""
        tokens = list(self.matcher.compute_ff_tokens())
        if tokens:
            self._advance(tokens)
        self._hurry()
        return tokens

    def _advance(self, tokens: Sequence[int]) -> None:
        if not self.matcher.consume_tokens(list(tokens)):
            raise RuntimeError(f"the grammar does not take the tokens {tokens}: {self.matcher.get_error()}")
        self._used += len(tokens)
        if not self._hurried:
            self._text += self.grammar.tokenizer.decode_bytes(list(tokens))

    def _hurry(self) -> None:
        """End the step that is being written when the rest would no longer fit."""
        if self._hurried:
            return
        left, step = self.grammar.budget - self._used, self._text.count(b"\n")
        if not 1 <= step <= len(_FIXED):
            return
        line = self._text.rpartition(b"\n")[2].decode("utf-8", "ignore")
        begun = line.startswith(f"{_FIXED[step - 1].rpartition(chr(10))[2]} ") and bool(
            line.partition(":** ")[2].strip()
        )
        if begun and left <= self.grammar.reserves[step - 1] + 1:
            self.matcher = _matcher(self.grammar, self.grammar.endings[step - 1])
            self._hurried = True


def _matcher(grammar: Grammar, text: str) -> Any:
    import llguidance

    matcher = llguidance.LLMatcher(grammar.tokenizer, text)
    if matcher.is_error():
        raise RuntimeError(f"the grammar of answers is broken: {matcher.get_error()}")
    return matcher


@lru_cache(maxsize=4)
def _guidance_tokenizer(tokenizer: Any, vocabulary: int) -> Any:
    """llguidance's view of a tokenizer; a second to make for 32,000 pieces, so it is kept."""
    try:
        from llguidance.hf import from_tokenizer
    except ModuleNotFoundError:
        raise InputError(f"a given form of answers needs llguidance: {install_hint('constrain')}") from None
    return from_tokenizer(tokenizer, n_vocab=vocabulary)


def allowed(guides: Sequence[Guide | None], vocabulary: int) -> Tensor:
    """`[rows, vocabulary]`: which tokens each row's grammar allows next."""
    import numpy as np
    import torch
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    bits = allocate_token_bitmask(len(guides), vocabulary)
    for row, guide in enumerate(guides):
        assert guide is not None
        fill_next_token_bitmask(guide.matcher, bits, row)
    unpacked = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=vocabulary)
    return torch.from_numpy(unpacked.astype(bool))
