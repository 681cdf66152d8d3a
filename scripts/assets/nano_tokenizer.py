"""The nano model's tokenizer: a sentencepiece BPE model in Llama's layout, made by one command.

    python scripts/assets/nano_tokenizer.py --out trace/assets/nano-tokenizer

A model of two million parameters has no capacity to spare for spelling. The tokenizer is therefore trained on the
fragments that its texts are made of (the fixed sentences, the headings, the phrases of the generator and of the rules
reasoner), each written alone, so that every fragment, word and digit ends as one piece: a Chain of Reasoning is 50
to 70 tokens instead of 600. Any other text still encodes, through characters and bytes. Digits are single tokens.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trace_vlm.core.prompts import POINTS_SUFFIX, REASONING_SUFFIX, TEMPLATES
from trace_vlm.core.reasoning import STEPS, render
from trace_vlm.data.cor import rules
from trace_vlm.data.scenes import captions
from trace_vlm.data.scenes.config import load_scene_config
from trace_vlm.data.scenes.wording import PLAIN, relation_phrase
from trace_vlm.utils.command import Parser, output_folder, run

# How often each piece stands in the corpus, which decides the order of the merges: coordinates before words, so that a
# digit never grows together with its comma; words before sentences, so that a word is one piece wherever it stands.
COORDINATE_WEIGHT, WORD_WEIGHT, SENTENCE_WEIGHT = 1000, 200, 5


COORDINATES = ["(0.", ", 0.", "), (0.", ")]", " [(0.", "[(0.", " at (0.", ")."]


def sentences() -> list[str]:
    """Long pieces, each with the space or newline that precedes it in a text."""
    vicuna = TEMPLATES["vicuna_v1"]
    empty = render(dict.fromkeys(STEPS, "@"), [])
    headings = [part for part in re.split(r"@|\[\]", empty) if part]
    headings[0] = " " + headings[0]  # an answer follows "ASSISTANT:" after a space
    around = [f" {vicuna.system} {vicuna.human}:", f" {vicuna.assistant}:", f" {REASONING_SUFFIX}", f" {POINTS_SUFFIX}"]
    stretches = [_trimmed(piece) for phrase in rules.phrases() for piece in re.split(r"\{\w+\}", phrase)]
    sides = [f" {relation_phrase(relation)}" for relation in PLAIN.places]
    return [*around, *headings, *sides, *[piece for piece in stretches if len(piece) > 1]]


def words() -> list[str]:
    """Every word of the texts with its leading space; one that opens a sentence also without (after a newline)."""
    texts = [*vocabulary(), *rules.phrases(), *captions.PHRASES, REASONING_SUFFIX, POINTS_SUFFIX]
    distinct = list(dict.fromkeys(re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", " ", " ".join(texts)))))
    return [*[f" {word}" for word in distinct], *[word for word in distinct if word[0].isupper()]]


def vocabulary() -> list[str]:
    """Every word and mark that plain instructions use, sorted."""
    pieces = [*PLAIN.find, *PLAIN.free, *(place for places in PLAIN.places.values() for place in places)]
    objects = load_scene_config(Path(__file__).parents[2] / "configs/scenes/nano.yaml").objects
    texts = ["the", *objects.colors, *objects.categories, *(re.sub(r"\{\w+\}", " ", piece) for piece in pieces)]
    return sorted({token for text in texts for token in re.findall(r"\w+|[^\w\s]", text)})


def _trimmed(piece: str) -> str:
    """A stretch between two placeholders as it stands in a text: it opens with a space unless it is punctuation."""
    piece = piece.rstrip(" ")
    return piece if not piece or piece[0] in " .,:" else f" {piece}"


def train_tokenizer(vocabulary_size: int) -> bytes:
    """The serialised sentencepiece model. Deterministic: the corpus is a fixed list, the trainer uses one thread."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    lines = [*_repeated(COORDINATES, COORDINATE_WEIGHT), *_repeated(words(), WORD_WEIGHT)]
    lines += _repeated(sentences(), SENTENCE_WEIGHT)
    lines += _repeated([chr(code) for code in range(32, 127)] + ["\n"], WORD_WEIGHT)
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=vocabulary_size,
        byte_fallback=True,
        character_coverage=1.0,
        max_sentencepiece_length=512,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        split_by_number=False,
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(buffer.getvalue())
    # The corpus writes its leading spaces itself (a fragment after a newline has none); texts get Llama's.
    model.normalizer_spec.add_dummy_prefix = True
    return model.SerializeToString(deterministic=True)


def _repeated(pieces: Sequence[str], times: int) -> Iterator[str]:
    for piece in dict.fromkeys(pieces):
        for _ in range(times):
            yield piece


def save_tokenizer(folder: Path, vocabulary_size: int) -> Any:
    """Write `tokenizer.model` and what transformers adds to it; return the loaded tokenizer."""
    from transformers import LlamaTokenizer

    for old in ("tokenizer.json", "tokenizer_config.json"):  # transformers would read these instead of the new model
        (folder / old).unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(train_tokenizer(vocabulary_size))
    tokenizer = LlamaTokenizer.from_pretrained(
        folder, legacy=False, add_bos_token=True, pad_token="<unk>", model_max_length=2048, padding_side="right"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Train the nano model's tokenizer.")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.model and its configuration")
    parser.add_argument("--vocabulary-size", type=int, default=1400, help="pieces, the 256 bytes included")
    args = parser.parse_args(argv)
    tokenizer = save_tokenizer(output_folder(args.out), args.vocabulary_size)
    print(f"{args.out}: {len(tokenizer)} pieces")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
