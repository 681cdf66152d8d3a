"""How answers are generated: the settings, and two loops that give the same tokens for rows together and one at a time.

`generate` packs the rows, for models that allow it; `generate_with_transformers` runs any model. In the first, every row
owns a slot of the key-value cache and fills its columns from the left, so that a token's column is its position and
nothing is padded. A pass takes any number of new tokens from every row. The part of a prompt up to the end of its image
is computed once for all questions about the image.

Tensor names carry their axes: N packed tokens, S slots, V vocabulary, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..utils.command import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..model.families.base import Checkpoint
    from .constrained_decoding import Guide
    from .kv_cache import PackedCache

MAX_BEAMS = 64  # each takes the memory of an answer
LOWEST_TEMPERATURE = 1e-4  # by which logits can be divided
PASS_TOKENS = {"cpu": 1280, "cuda": 16384}  # of prompts in one pass: bounds the memory of the layers' inputs

OnStep = Callable[[Sequence["AnswerRow"]], object]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are generated. Temperature 0 is greedy, or beam search if `num_beams` exceeds 1."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    seed: int = 0
    constrain: bool = False  # the canonical form, by a grammar
    num_points: int | None = None  # exactly so many, by a grammar
    samples: int = 1  # answers drawn for a question
    aggregate: Literal["first", "medoid"] = "first"  # which of them is the answer
    image_attention_bias: float = 0.0

    def __post_init__(self) -> None:
        for valid, message in (  # `not valid`, so that NaN fails too
            (self.temperature == 0 or LOWEST_TEMPERATURE <= self.temperature < math.inf,
             f"--temperature {self.temperature}: must be 0 (greedy) or at least {LOWEST_TEMPERATURE}"),
            (0 < self.top_p <= 1, f"--top-p {self.top_p}: must be above 0 and at most 1"),
            (1 <= self.num_beams <= MAX_BEAMS, f"--num-beams {self.num_beams}: must be 1 to {MAX_BEAMS}"),
            (self.max_new_tokens >= 1, f"--max-new-tokens {self.max_new_tokens}: must be at least 1"),
            (0 <= self.seed < 2**63, f"--seed {self.seed}: must be from 0 to 2**63 - 1"),
            (math.isfinite(self.image_attention_bias), "--image-attention-bias: must be a finite number"),
            (self.num_points is None or 1 <= self.num_points <= 50, f"--num-points {self.num_points}: must be 1 to 50"),
            (self.samples >= 1, f"--samples {self.samples}: must be at least 1"),
            (self.samples == 1 or self.temperature > 0, "--samples needs --temperature: greedy answers are all the same"),
            (self.aggregate == "first" or self.samples > 1, f"--aggregate {self.aggregate} needs --samples above 1"),
            (self.num_beams == 1 or not (self.constrained or self.samples > 1),
             "--num-beams cannot be combined with --samples, --constrain or --num-points"),
        ):  # fmt: skip
            if not valid:
                raise InputError(message)

    @property
    def constrained(self) -> bool:
        return self.constrain or self.num_points is not None


@dataclass(slots=True)
class AnswerRow:
    """An answer in progress."""

    image: int  # the index of its image
    ids: Sequence[int]  # the prompt with the image's tokens in place
    rng: np.random.Generator | None = None  # draws the tokens; None: greedy
    guide: Guide | None = None
    position: int = 0  # of its question among those that are asked together
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # among the allowed tokens; 0.0 for a forced one
    finished: bool = False


def generate(
    checkpoint: Checkpoint, rows: Sequence[AnswerRow], features: Sequence[Tensor], decoding: Decoding,
    on_step: OnStep | None = None,
) -> None:  # fmt: skip
    """Fill in every row's `token_ids`, up to the end-of-sequence token and without it.

    Args:
        features: of each image, `[patches, hidden]` after the projector.
        on_step: called with the rows after each step; an exception from it ends the generation.
    """
    import torch

    from .kv_cache import PackedCache, packed

    longest = max(len(row.ids) for row in rows)
    cache = PackedCache(len(rows), longest + decoding.max_new_tokens)
    with torch.inference_mode(), packed(checkpoint.model, cache):
        loop = _Loop(checkpoint, cache, rows, features, decoding)
        logits = loop.prompts()
        while pending := loop.chooser.choose(logits):
            if on_step is not None:
                on_step(rows)
            logits = loop.step(pending, logits)
    if on_step is not None:
        on_step(rows)


class _Chooser:
    """Chooses the tokens of every row, among what its grammar allows, and fills the rows with them."""

    def __init__(self, checkpoint: Checkpoint, rows: Sequence[AnswerRow], decoding: Decoding) -> None:
        import torch

        self.rows, self.decoding, self.end_ids = rows, decoding, checkpoint.end_ids
        device = checkpoint.model.get_input_embeddings().weight.device
        self.suppressed = torch.tensor(checkpoint.suppressed_ids, dtype=torch.long, device=device)

    def begin(self, row: AnswerRow) -> list[int]:
        """The tokens that a row's grammar forces before any is chosen."""
        forced = row.guide.forced() if row.guide is not None else []
        row.token_ids += forced
        row.logprobs += [0.0] * len(forced)
        return forced

    def choose(self, logits: dict[int, Tensor]) -> dict[int, list[int]]:
        """The next tokens of every row that continues: the chosen one, and those that its grammar forces after it."""
        pending: dict[int, list[int]] = {}
        for index, token, logprob in self._tokens(logits):
            row = self.rows[index]
            if token in self.end_ids:
                row.finished = True
                continue
            new = [token]
            if row.guide is not None:
                row.guide.take([token])
                new += row.guide.forced()[: self.decoding.max_new_tokens - len(row.token_ids) - 1]
            row.token_ids += new
            row.logprobs += [logprob, *[0.0] * (len(new) - 1)]
            ended = row.guide is not None and row.guide.finished
            row.finished = ended or len(row.token_ids) >= self.decoding.max_new_tokens
            if not row.finished:
                pending[index] = new
        return pending

    def _tokens(self, logits: dict[int, Tensor]) -> Iterator[tuple[int, int, float]]:
        """(row, token, log-probability), chosen among what each row's grammar allows."""
        import torch

        rows = [self.rows[index] for index in logits]
        scores_SV = torch.stack(list(logits.values()))
        scores_SV[:, self.suppressed] = -torch.inf
        if rows[0].guide is not None:
            from .constrained_decoding import allowed_tokens

            mask_SV = allowed_tokens([row.guide for row in rows], scores_SV.shape[1])
            scores_SV.masked_fill_(~mask_SV.to(scores_SV.device), -math.inf)
        log_SV = scores_SV.log_softmax(-1)
        if self.decoding.temperature == 0:
            token_S = scores_SV.argmax(-1)
        else:
            draws = [row.rng.random() for row in rows]  # type: ignore[union-attr]
            draw_S = torch.tensor(draws, dtype=torch.float64, device=scores_SV.device)
            token_S = sample(scores_SV, self.decoding.temperature, self.decoding.top_p, draw_S)
        logprob_S = log_SV.gather(1, token_S[:, None])[:, 0]
        return zip(logits, token_S.tolist(), logprob_S.tolist(), strict=True)


class _Loop:
    def __init__(
        self, checkpoint: Checkpoint, cache: PackedCache, rows: Sequence[AnswerRow], features: Sequence[Tensor],
        decoding: Decoding,
    ) -> None:  # fmt: skip
        self.model, self.cache, self.rows, self.features = checkpoint.model, cache, rows, features
        self.decoding, self.chooser = decoding, _Chooser(checkpoint, rows, decoding)
        self.image_token = checkpoint.image_token_id
        self.device = self.model.get_input_embeddings().weight.device
        self.slot_of = {index: index for index in range(len(rows))}  # rows still generating -> their slot
        self.lengths = [0] * len(rows)  # columns that a row has filled

    def prompts(self) -> dict[int, Tensor]:
        """Feed every prompt, images first: rows that are equal up to the end of their image share that part."""
        # The number of ids up to the image's last token.
        heads = [len(row.ids) - list(reversed(row.ids)).index(self.image_token) for row in self.rows]
        if self.decoding.image_attention_bias:
            self.cache.bias = self.decoding.image_attention_bias
            self.cache.images = [
                (list(row.ids).index(self.image_token), head) for row, head in zip(self.rows, heads, strict=True)
            ]
        beginnings = [(row.image, tuple(row.ids[:head])) for row, head in zip(self.rows, heads, strict=True)]
        owners: dict[tuple[int, tuple[int, ...]], int] = {}
        for index, beginning in enumerate(beginnings):
            owners.setdefault(beginning, index)
        for chunk in self._chunks({index: beginning[1] for beginning, index in owners.items()}):
            self._forward(chunk, with_image=True)
        tails: dict[int, Sequence[int]] = {}
        for index, (row, head, beginning) in enumerate(zip(self.rows, heads, beginnings, strict=True)):
            if owners[beginning] != index:
                self.cache.copy(owners[beginning], index, head)
                self.lengths[index] = head
            tails[index] = [*row.ids[head:], *self.chooser.begin(row)]
        return {index: logits for chunk in self._chunks(tails) for index, logits in self._forward(chunk).items()}

    def _chunks(self, tokens: Mapping[int, Sequence[int]]) -> Iterator[dict[int, Sequence[int]]]:
        limit = PASS_TOKENS["cuda" if self.device.type == "cuda" else "cpu"]
        chunk: dict[int, Sequence[int]] = {}
        for index, ids in tokens.items():
            if chunk and sum(map(len, chunk.values())) + len(ids) > limit:
                yield chunk
                chunk = {}
            chunk[index] = ids
        if chunk:
            yield chunk

    def step(self, pending: dict[int, list[int]], logits: dict[int, Tensor]) -> dict[int, Tensor]:
        """Release the slots of finished rows and feed the new tokens of the others."""
        for index in logits:
            if index in pending:
                continue
            # The last slot moves into the gap, so that a pass goes over the cache as it is stored.
            slot, last = self.slot_of.pop(index), self.cache.slots - 1
            moved = next((other for other, taken in self.slot_of.items() if taken == last), index)
            self.cache.release(slot, self.lengths[moved])
            if moved != index:
                self.slot_of[moved] = slot
        return self._forward(dict(sorted(pending.items(), key=lambda item: self.slot_of[item[0]])))

    def _forward(self, tokens: Mapping[int, Sequence[int]], with_image: bool = False) -> dict[int, Tensor]:
        """Feed new tokens to their rows; return the logits after each row's last one, `[vocabulary]`."""
        import torch

        from .kv_cache import PackedTokens

        flat = [token for ids in tokens.values() for token in ids]
        new = {self.slot_of[index]: (self.lengths[index], len(ids)) for index, ids in tokens.items()}
        self.cache.packing = packing = PackedTokens.of(new, self.device)
        ids_N = torch.tensor(flat, device=self.device)
        inputs_ND = self.model.get_input_embeddings()(ids_N)
        if with_image:
            image_ND = torch.cat([self.features[self.rows[index].image] for index in tokens])
            columns_N = (ids_N == self.image_token).nonzero()[:, 0]
            inputs_ND = inputs_ND.index_copy(0, columns_N, image_ND.to(inputs_ND))
        hidden_ND = self.model.model.language_model(
            inputs_embeds=inputs_ND[None], position_ids=packing.columns_N[None], use_cache=False
        ).last_hidden_state[0]
        for index, ids in tokens.items():
            self.lengths[index] += len(ids)
        if with_image:
            return {}
        last_S = torch.tensor(packing.counts, device=hidden_ND.device).cumsum(0) - 1
        logits_SV = self.model.lm_head(hidden_ND[last_S]).float()
        return dict(zip(tokens, logits_SV, strict=True))


def sample(scores_SV: Tensor, temperature: float, top_p: float, draw_S: Tensor) -> Tensor:
    """A token a row: `draw_S` in [0, 1) picks from the most probable ones that together reach `top_p`."""
    import torch

    probability_SV, order_SV = (scores_SV / temperature).softmax(-1).double().sort(-1, descending=True)
    reached_SV = probability_SV.cumsum(-1)
    probability_SV[reached_SV - probability_SV >= top_p] = 0.0
    reached_SV = probability_SV.cumsum(-1)
    place_S = torch.searchsorted(reached_SV, draw_S[:, None] * reached_SV[:, -1:], right=True)[:, 0]
    last_S = (probability_SV > 0).sum(-1) - 1  # rounding must not lead past the allowed tokens
    return order_SV.gather(1, torch.minimum(place_S, last_S)[:, None])[:, 0]


def generate_with_transformers(
    checkpoint: Checkpoint, rows: Sequence[AnswerRow], inputs: Mapping[str, Tensor], decoding: Decoding,
    on_step: OnStep | None = None, **options: Any,
) -> None:  # fmt: skip
    """Fill in the rows as `generate` does, by transformers' own loop: any model, and beam search.

    Args:
        inputs: a batch from `Checkpoint.inputs`, one row each.
        on_step: called with the rows after each step, not with beams; an exception from it ends the generation.
        options: passed on to transformers' `generate` (min_new_tokens, ...).
    """
    import torch
    from transformers import GenerationConfig

    from ..model.attention_recorder import image_bias

    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    beams, sampled = decoding.num_beams > 1, decoding.num_beams > 1 and decoding.temperature > 0
    # Every setting is given: generate takes those that are None from the checkpoint's own file.
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, min_new_tokens=0, do_sample=sampled,
        temperature=decoding.temperature if sampled else 1.0, top_p=decoding.top_p if sampled else 1.0,
        top_k=0 if sampled else 50,  # 50 is the default, which greedy search does not warn about
        num_beams=decoding.num_beams, num_return_sequences=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
        use_cache=True, return_dict_in_generate=False, suppress_tokens=checkpoint.suppressed_ids,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=checkpoint.end_ids,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )  # fmt: skip
    chooser = _Chooser(checkpoint, rows, decoding)
    queues = [chooser.begin(row) for row in rows]  # tokens that are chosen or forced, and not fed yet

    def choose(_: Tensor, scores_SV: Tensor) -> Tensor:
        """Scores of which greedy search takes each row's next token; a row that has ended takes any."""
        asked = [index for index, row in enumerate(rows) if not (queues[index] or row.finished)]
        for index, new in (chooser.choose({index: scores_SV[index] for index in asked}) if asked else {}).items():
            queues[index] = new
        tokens = [queue.pop(0) if queue else config.pad_token_id for queue in queues]
        chosen_S1 = torch.tensor(tokens, device=scores_SV.device)[:, None]
        return torch.full_like(scores_SV, -torch.inf).scatter_(1, chosen_S1, 0.0)

    def ended(ids: Tensor, _: Tensor) -> Tensor:
        if on_step is not None:
            on_step(rows)
        return torch.tensor([row.finished for row in rows], device=ids.device)

    if not beams:
        options |= {"logits_processor": [choose], "stopping_criteria": [ended]}
    bias = image_bias(model, decoding.image_attention_bias, inputs["input_ids"] == checkpoint.image_token_id)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices), bias:
        torch.manual_seed(decoding.seed)
        ids = model.generate(**inputs, generation_config=config, **options)
    if beams:
        for row, answer in zip(rows, ids[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            row.token_ids = checkpoint.until_end(answer)
