"""How answers are generated: the settings, and a loop over packed rows that gives the same tokens as one at a time.

Every row owns a slot of the key-value cache and fills its columns from the left, so that a token's column is its
position and nothing is padded. A pass takes any number of new tokens from every row: the whole prompt, one chosen
token, or that token with those a grammar forces after it. Linear layers see real tokens only, one after the other in
a single packed row; only the attention itself puts them back into slots. What an image and the words before it
compute is done once for all questions about it.

Tensor names carry their axes: N packed tokens, S slots, H heads, L tokens of a slot in a pass, T columns, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..utils.command import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..model.checkpoint import Checkpoint
    from .grammar import Guide
    from .kv_cache import PackedCache

MOST_BEAMS = 64  # each takes the memory of an answer
PASS_TOKENS = {"cpu": 1280, "cuda": 16384}  # of prompts in one pass: bounds the memory of the layers' inputs

Aggregate = Literal["first", "medoid"]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are generated. Temperature 0 is greedy, or beam search where `num_beams` exceeds 1.

    `num_points` asks for exactly that many points, `constrain` for any number in the canonical form; both through a
    grammar. `samples` answers are drawn for a question, `aggregate` says which of them is the answer.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    seed: int = 0
    constrain: bool = False
    num_points: int | None = None
    samples: int = 1
    aggregate: Aggregate = "first"
    image_attention_bias: float = 0.0

    def __post_init__(self) -> None:
        # Not `<`: NaN has to fail too.
        if not (0 <= self.temperature < math.inf):
            raise InputError(f"the temperature has to be 0 (greedy) or above, not {self.temperature}")
        if not (0 < self.top_p <= 1):
            raise InputError(f"top-p has to lie above 0 and be at most 1, not {self.top_p}")
        if not 1 <= self.num_beams <= MOST_BEAMS or self.max_new_tokens < 1:
            raise InputError(f"there are 1 to {MOST_BEAMS} beams, and at least 1 new token")
        if not (0 <= self.seed < 2**63):
            raise InputError(f"the seed has to lie between 0 and 2**63, not {self.seed}")
        if not math.isfinite(self.image_attention_bias):
            raise InputError(f"the bias of image attention has to be a number, not {self.image_attention_bias}")
        if self.num_points is not None and not 1 <= self.num_points <= 50:
            raise InputError(f"an answer holds 1 to 50 points, not {self.num_points}")
        if self.samples < 1 or (self.samples > 1 and self.temperature == 0):
            raise InputError(f"{self.samples} samples need a temperature above 0: greedy answers are all the same")
        if self.aggregate != "first" and self.samples < 2:
            raise InputError(f"--aggregate {self.aggregate} needs several answers: give --samples")
        if self.num_beams > 1 and (self.constrained or self.samples > 1):
            raise InputError("beam search goes with neither a grammar nor several samples; leave out --num-beams")

    @property
    def constrained(self) -> bool:
        return self.constrain or self.num_points is not None


@dataclass(slots=True)
class Row:
    """One answer in the making: `ids` is the prompt with the image's tokens in place, `image` the number of its image.

    `rng` draws the tokens (None: greedy). `token_ids` and `logprobs` grow; a token that a grammar forces has 0.0, the
    others what the model gave them among the tokens allowed.
    """

    image: int
    ids: Sequence[int]
    rng: np.random.Generator | None = None
    guide: Guide | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


def generate(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    features: Sequence[Tensor],
    decoding: Decoding,
    never: Sequence[int],
    on_step: Callable[[Sequence[Row]], object] | None = None,
) -> None:
    """Fill in every row's `token_ids`, up to the end-of-sequence token and without it.

    Args:
        features: of each image, `[patches, hidden]` after the projector.
        never: ids that may not be generated.
        on_step: called with the rows after each new token; what it raises ends the generation.
    """
    import torch

    from .kv_cache import PackedCache, packed

    longest = max(len(row.ids) for row in rows)
    cache = PackedCache(len(rows), longest + decoding.max_new_tokens)
    with torch.inference_mode(), packed(checkpoint.model, cache):
        _Loop(checkpoint, cache, rows, features, decoding, never).run(on_step)


class _Loop:
    def __init__(
        self,
        checkpoint: Checkpoint,
        cache: PackedCache,
        rows: Sequence[Row],
        features: Sequence[Tensor],
        decoding: Decoding,
        never: Sequence[int],
    ) -> None:
        import torch

        self.model, self.rows, self.features, self.decoding = checkpoint.model, rows, features, decoding
        self.image_token, self.end = checkpoint.image_token_id, checkpoint.tokenizer.eos_token_id
        self.device = self.model.get_input_embeddings().weight.device
        self.never = torch.tensor(list(never), dtype=torch.long, device=self.device)
        self.pass_tokens = PASS_TOKENS["cuda" if self.device.type == "cuda" else "cpu"]
        self.cache = cache
        self.slot_of = {place: place for place in range(len(rows))}  # rows still generating -> their slot
        self.lengths = [0] * len(rows)  # columns that a row has filled

    def run(self, on_step: Callable[[Sequence[Row]], object] | None) -> None:
        logits = self._prompts()
        while True:
            pending = self._choose(logits)
            if on_step is not None:
                on_step(self.rows)
            if not pending:
                return
            self._release([place for place in logits if place not in pending])
            logits = self._pass(dict(sorted(pending.items(), key=lambda one: self.slot_of[one[0]])))

    def _release(self, finished: Sequence[int]) -> None:
        """Close the gaps that finished rows leave, so that a pass goes over the cache as it lies."""
        for place in finished:
            slot, last = self.slot_of.pop(place), self.cache.slots - 1
            moved = next((other for other, taken in self.slot_of.items() if taken == last), place)
            self.cache.release(slot, self.lengths[moved])
            if moved != place:
                self.slot_of[moved] = slot

    def _prompts(self) -> dict[int, Tensor]:
        """Every prompt, images first: rows that begin alike up to the end of their image share that part."""
        if self.decoding.image_attention_bias:
            self.cache.bias = self.decoding.image_attention_bias
            self.cache.images = [_image_columns(row.ids, self.image_token) for row in self.rows]
        owners: dict[tuple[int, tuple[int, ...]], int] = {}
        heads = [_head(row.ids, self.image_token) for row in self.rows]
        shared = [
            owners.setdefault((row.image, tuple(row.ids[:head])), place)
            for place, (row, head) in enumerate(zip(self.rows, heads, strict=True))
        ]
        for chunk in self._chunks({place: self.rows[place].ids[: heads[place]] for place in owners.values()}):
            self._pass(chunk, embedded=True)
        for place, owner in enumerate(shared):
            if owner != place:
                self.cache.copy(owner, place, heads[place])
                self.lengths[place] = heads[place]
        logits: dict[int, Tensor] = {}
        tails = {place: [*row.ids[heads[place] :], *self._opening(row)] for place, row in enumerate(self.rows)}
        for chunk in self._chunks(tails):
            logits |= self._pass(chunk)
        return logits

    def _opening(self, row: Row) -> list[int]:
        """The tokens with which a row's grammar lets every answer begin."""
        if row.guide is None:
            return []
        row.token_ids += (forced := row.guide.forced())
        row.logprobs += [0.0] * len(forced)
        return forced

    def _chunks(self, tokens: dict[int, Sequence[int]]) -> Iterator[dict[int, Sequence[int]]]:
        chunk: dict[int, Sequence[int]] = {}
        for place, ids in tokens.items():
            if chunk and sum(map(len, chunk.values())) + len(ids) > self.pass_tokens:
                yield chunk
                chunk = {}
            chunk[place] = ids
        if chunk:
            yield chunk

    def _pass(self, tokens: dict[int, Sequence[int]], embedded: bool = False) -> dict[int, Tensor]:
        """Feed new tokens to their rows; returns the logits after each row's last one, `[vocabulary]`."""
        import torch

        from .kv_cache import Packing

        flat = [token for ids in tokens.values() for token in ids]
        packing = Packing.of({self.slot_of[place]: (self.lengths[place], len(ids)) for place, ids in tokens.items()})
        ids_N = torch.tensor(flat, device=self.device)
        inputs_ND = self.model.get_input_embeddings()(ids_N)
        if embedded:
            image_ND = torch.cat([self.features[self.rows[place].image] for place in tokens])
            places_N = (ids_N == self.image_token).nonzero()[:, 0]
            inputs_ND = inputs_ND.index_copy(0, places_N, image_ND.to(inputs_ND))
        self.cache.packing = packing
        hidden_ND = self.model.model.language_model(
            inputs_embeds=inputs_ND[None], position_ids=packing.on(self.device).columns_N[None], use_cache=False
        ).last_hidden_state[0]
        for place, ids in tokens.items():
            self.lengths[place] += len(ids)
        if embedded:
            return {}
        last_S = torch.tensor(packing.ends, device=hidden_ND.device) - 1
        logits_SV = self.model.lm_head(hidden_ND[last_S]).float()
        return dict(zip(tokens, logits_SV, strict=True))

    def _choose(self, logits: dict[int, Tensor]) -> dict[int, list[int]]:
        """The next tokens of every row that goes on: the chosen one, and those that its grammar forces behind it."""
        pending: dict[int, list[int]] = {}
        chosen = self._tokens(logits)
        for place, (token, logprob) in chosen.items():
            row = self.rows[place]
            if token == self.end:
                row.finished = True
                continue
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            new = [token]
            if row.guide is not None:
                row.guide.take(token)
                forced = row.guide.forced()[: self.decoding.max_new_tokens - len(row.token_ids)]
                row.token_ids.extend(forced)
                row.logprobs.extend([0.0] * len(forced))
                new += forced
                row.finished = row.guide.finished
            row.finished = row.finished or len(row.token_ids) >= self.decoding.max_new_tokens
            if not row.finished:
                pending[place] = new
        return pending

    def _tokens(self, logits: dict[int, Tensor]) -> dict[int, tuple[int, float]]:
        import torch

        places = list(logits)
        scores_SV = torch.stack([logits[place] for place in places])
        scores_SV[:, self.never] = -torch.inf
        self._restrict(scores_SV, places)
        log_SV = scores_SV.log_softmax(-1)
        if self.decoding.temperature == 0:
            token_S = scores_SV.argmax(-1)
        else:
            draws = [self.rows[place].rng.random() for place in places]  # type: ignore[union-attr]
            draw_S = torch.tensor(draws, dtype=torch.float64, device=scores_SV.device)
            token_S = sample(scores_SV, self.decoding.temperature, self.decoding.top_p, draw_S)
        logprob_S = log_SV.gather(1, token_S[:, None])[:, 0]
        return dict(zip(places, zip(token_S.tolist(), logprob_S.tolist(), strict=True), strict=True))

    def _restrict(self, scores_SV: Tensor, places: Sequence[int]) -> None:
        """Leave only what each row's grammar allows."""
        guides = [self.rows[place].guide for place in places]
        if guides[0] is not None:
            from .grammar import allowed

            mask_SV = allowed(guides, scores_SV.shape[1])
            scores_SV.masked_fill_(~mask_SV.to(scores_SV.device), -math.inf)


def _head(ids: Sequence[int], image_token: int) -> int:
    """How many of the ids end with the image's last token: what questions about one image have in common."""
    return len(ids) - list(reversed(ids)).index(image_token)


def _image_columns(ids: Sequence[int], image_token: int) -> tuple[int, int]:
    """First column of the image and one past its last."""
    return list(ids).index(image_token), _head(ids, image_token)


def sample(scores_SV: Tensor, temperature: float, top_p: float, draw_S: Tensor) -> Tensor:
    """A token a row: `draw_S` in [0, 1) picks from the most probable ones that together reach `top_p`."""
    import torch

    probability_SV, order_SV = (scores_SV / temperature).softmax(-1).double().sort(-1, descending=True)
    reached_SV = probability_SV.cumsum(-1)
    probability_SV[reached_SV - probability_SV >= top_p] = 0.0
    reached_SV = probability_SV.cumsum(-1)
    place_S = torch.searchsorted(reached_SV, draw_S[:, None] * reached_SV[:, -1:], right=True)[:, 0]
    last_S = (probability_SV > 0).sum(-1) - 1  # rounding must not lead behind what is allowed
    return order_SV.gather(1, torch.minimum(place_S, last_S)[:, None])[:, 0]
