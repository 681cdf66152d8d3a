"""Answers in a given form: a grammar limits the tokens that a model may write, through llguidance.

With reasoning the form is the template of `core.reasoning`, without it the list of points alone; in place of the points
an answer may say that there is nothing to point at (`core.absence`), unless a number of points is asked for. Text with a
single continuation (headings, punctuation, the dot of a number) is forced without asking the model. An answer that has
the form anyway is not changed. If the rest of the template would no longer fit into the budget of new tokens, the
current step is ended, so that an answer always has its points.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..core.absence import format_none
from ..core.reasoning import FINAL_ANSWER, HEADINGS, PREAMBLE, STEPS
from ..utils.command import InputError, install_hint

if TYPE_CHECKING:
    from torch import Tensor

MAX_POINTS = 50  # RoboPoint's data have 1 to 50 points an image
NONE_TOKENS = 36  # of the answer that there is nothing to point at, with its reason
HURRIED = 3  # tokens of a step for which there is no more room
SLACK = 2  # tokens by which a heading may be longer than counted: the words before it can change how it is cut

_NUMBER = r"(0\.[0-9]{1,4}|1\.0{1,4})"
_RULES = rf"""
point: /\({_NUMBER}, {_NUMBER}\)/
item: /\({_NUMBER}, {_NUMBER}(, {_NUMBER}, {_NUMBER})?\)/
none[max_tokens={NONE_TOKENS}]: /{format_none("")}[^\s][^\n]*/
"""
# The fixed text before each step's own words.
_FIXED = [
    f"{before}{number}. **{HEADINGS[key]}:**"
    for number, (before, key) in enumerate(zip([f"{PREAMBLE}\n", "\n", "\n", "\n"], STEPS, strict=True), start=1)
]
_LAST = f"\n\n{FINAL_ANSWER}\n"
_WORST, _WORST_BOX = "(0.4444, 0.4444), ", "(0.4444, 0.4444, 0.4444, 0.4444), "  # the longest point and box


class Grammar:
    """The form of an answer, for one tokenizer and one budget of new tokens.

    Args:
        vocab_size: rows of the output layer, including those that only round it up.
        num_points: exactly so many points; None for any number of points or boxes, or that there is nothing.
        lead: what stands between the prompt and an answer.
    Raises:
        InputError: llguidance is not installed, or the budget is too small for any answer.
    """

    def __init__(
        self, tokenizer: Any, vocab_size: int, reasoning: bool, num_points: int | None, max_new_tokens: int,
        lead: str = " ",
    ) -> None:  # fmt: skip
        self.tokenizer, self.budget = _guidance_tokenizer(tokenizer, vocab_size), max_new_tokens
        self.reasoning, self.lead = reasoning, lead
        self.fixed = [f"{lead}{_FIXED[0]}", *_FIXED[1:]]

        def count(text: str) -> int:
            return len(self.tokenizer.tokenize_str(text)) + SLACK

        points = len(" [" + (_WORST * num_points if num_points else _WORST_BOX))  # at worst a token a character
        # What has to follow step i: the other headings with a few words each, and the points.
        self.reserves = [points + count(_LAST)]
        for fixed in reversed(_FIXED[1:]):
            self.reserves.insert(0, self.reserves[0] + count(fixed) + HURRIED)
        least = self.reserves[0] + count(self.fixed[0]) + HURRIED if reasoning else points
        if max_new_tokens < least:
            form = f"{num_points} points" if num_points else "an answer"
            raise InputError(
                f"{max_new_tokens} new tokens are too few for {form}. Give --max-new-tokens {least} or more"
            )
        item, more = ("point", num_points - 1) if num_points else ("item", f"0,{MAX_POINTS - 1}")
        self._points = rf'"[" {item} (", " {item}){{{more}}} "]"' if more else f'"[" {item} "]"'
        if not num_points:
            self._points = f"({self._points} | none)"
        self.complete = self._compile(0 if reasoning else len(_FIXED), None)
        self.endings = [self._compile(step, HURRIED) for step in range(1, len(_FIXED) + 1)] if reasoning else []

    def _compile(self, step: int, limit: int | None) -> str:
        """The grammar from the heading of `step` on (0 is the first, 4 the final answer), its steps at most `limit`."""
        import llguidance

        parts: list[str] = []
        for fixed in self.fixed[step:]:
            parts += [json.dumps(f"{fixed} "), "words"]
        last = _LAST if self.reasoning else self.lead
        parts += [json.dumps(last)] if last else []
        words = f"words[max_tokens={limit}]" if limit else "words"
        text = rf"start: {' '.join(parts)} {self._points}{_RULES}{words}: /[^\s][^\n]*/" + "\n"
        return str(llguidance.LLMatcher.grammar_from_lark(text))

    def matcher(self, text: str) -> Any:
        import llguidance

        return llguidance.LLMatcher(self.tokenizer, text)


class Guide:
    """One answer's state in a grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar, self.matcher = grammar, grammar.matcher(grammar.complete)
        self._used, self._text = 0, b""
        self._hurried = not grammar.reasoning

    @property
    def finished(self) -> bool:
        return bool(self.matcher.is_stopped())

    def take(self, tokens: list[int]) -> None:
        """Add tokens to the answer: those that the model chose."""
        if not self.matcher.consume_tokens(tokens):
            raise RuntimeError(f"the grammar does not allow the tokens {tokens}: {self.matcher.get_error()}")
        self._used += len(tokens)
        if not self._hurried:
            self._text += self.grammar.tokenizer.decode_bytes(tokens)

    def forced(self) -> list[int]:
        """The tokens that have to come next; they are added."""
        tokens = list(self.matcher.compute_ff_tokens())
        if tokens:
            self.take(tokens)
        self._end_step_in_time()
        return tokens

    def _end_step_in_time(self) -> None:
        left, step = self.grammar.budget - self._used, self._text.count(b"\n")
        if self._hurried or not 1 <= step <= len(_FIXED):
            return
        line = self._text.rpartition(b"\n")[2].decode("utf-8", "ignore")
        heading = f"{_FIXED[step - 1].rpartition(chr(10))[2]} "
        begun = line.startswith(heading) and bool(line.partition(":** ")[2].strip())
        if begun and left <= self.grammar.reserves[step - 1] + 1:
            self.matcher = self.grammar.matcher(self.grammar.endings[step - 1])
            self._hurried = True


@lru_cache(maxsize=4)
def _guidance_tokenizer(tokenizer: Any, vocab_size: int) -> Any:
    """llguidance's tokenizer, cached: it takes a second to make for 32,000 pieces."""
    try:
        from llguidance.hf import from_tokenizer
    except ModuleNotFoundError:
        raise InputError(f"answers in a given form need llguidance: {install_hint('constrain')}") from None
    return from_tokenizer(tokenizer, n_vocab=vocab_size)


def allowed_tokens(guides: Sequence[Guide | None], vocab_size: int) -> Tensor:
    """`[rows, vocabulary]`: which tokens each row's grammar allows next."""
    import numpy as np
    import torch
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    bits = allocate_token_bitmask(len(guides), vocab_size)
    for row, guide in enumerate(guides):
        assert guide is not None
        fill_next_token_bitmask(guide.matcher, bits, row)
    unpacked = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=vocab_size)
    return torch.from_numpy(unpacked.astype(bool))
