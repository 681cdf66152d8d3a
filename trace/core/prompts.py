"""The prompt: the fixed sentences, the conversation templates, token ids and labels, for training and evaluation alike.

Token ids follow LLaVA: the text before and after the image is tokenised separately, so the piece after it opens with
the sentencepiece prefix. Ids and labels are made together, from character spans of one rendered text: a token is learned
exactly if its characters lie in an assistant turn (the closing `</s>` included).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.command import InputError
from .records import Turn

IMAGE_TAG = "<image>"
IMAGE_ID = -200  # stands for the whole image in encoded ids; it becomes the image's tokens when a batch is made
IGNORE = -100  # the label of a token that is not learned

# RoboPoint's sentence, to the letter: published checkpoints were trained with it.
POINTS_SUFFIX = (
    "Your answer should be formatted as a list of tuples, i.e. [(x1, y1), (x2, y2), ...], where each tuple contains "
    "the x and y coordinates of a point satisfying the conditions above. The coordinates should be between 0 and 1, "
    "indicating the normalized pixel locations of the points in the image."
)
BOX_SUFFIX = (
    "Your answer should be formatted as a list of bounding boxes, i.e. [(x0, y0, x1, y1), ...], where each tuple "
    "contains the top left and the bottom right corner of a box satisfying the conditions above. The coordinates "
    "should be between 0 and 1, indicating the normalized pixel locations of the corners in the image."
)
REASONING_SUFFIX = (
    "Reason step by step before you answer: identify the reference object, define the target area, determine the "
    "goal's subtype and generate the output, then give the final answer."
)
# Begins the last sentences of published questions.
FORMAT_SENTENCE = re.compile("your answer should be formatted", re.IGNORECASE)
YES_NO_SUFFIX = "Answer yes or no."  # as RoboSpatial-Home asks


def asks_yes_no(instruction: str) -> bool:
    """Whether an instruction is a question to be answered by yes or no; it is asked in its own words, without points."""
    return bare_instruction(instruction).casefold().endswith(YES_NO_SUFFIX.casefold())


def question_text(instruction: str, reasoning: bool) -> str:
    """Return the text of a human turn: the instruction, the request for reasoning if wanted, the format of the answer.

    Sentences that the instruction already ends with (Where2Place's do) are not repeated; a question that asks for yes or
    no gets none.
    """
    core = bare_instruction(instruction)
    if asks_yes_no(core):
        return core
    return " ".join([core, REASONING_SUFFIX, POINTS_SUFFIX] if reasoning else [core, POINTS_SUFFIX])


def bare_instruction(text: str) -> str:
    """Return the instruction without the image tag and the fixed sentences."""
    core = text.replace(IMAGE_TAG, "").strip()
    for suffix in (POINTS_SUFFIX, REASONING_SUFFIX):
        core = core.removesuffix(suffix).rstrip()
    return core


@dataclass(frozen=True, slots=True)
class Template:
    """How turns are written into one text. `stop` ends an assistant turn, `separator` a human one."""

    name: str
    system: str
    human: str
    assistant: str
    separator: str
    stop: str


def _vicuna(name: str, who: str) -> Template:
    system = (
        f"A chat between a curious {who} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
    )
    return Template(name, system, "USER", "ASSISTANT", " ", "</s>")


# LLaVA trains with "user"; its evaluation script asks with "human". Training's is the default for both here.
TEMPLATES = {
    "vicuna_v1": _vicuna("vicuna_v1", "user"),
    "llava_v1": _vicuna("llava_v1", "human"),
    "plain": Template("plain", "", "", "", "", "\n"),  # projector pre-training: an image, then its caption
}


def template(name: str) -> Template:
    """Return the template called `name`; "v1" is LLaVA's other name of vicuna_v1. InputError lists the known ones."""
    style = TEMPLATES.get("vicuna_v1" if name == "v1" else name)
    if style is None:
        raise InputError(f"unknown conversation template {name!r}. Known: {', '.join(TEMPLATES)}, v1")
    return style


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as one text, and the character spans of what the assistant says (its stop included)."""

    text: str
    answers: tuple[tuple[int, int], ...]


def render(turns: Sequence[Turn], style: Template) -> Rendered:
    """Write turns as text; a last human turn leaves the text open for the assistant.

    InputError for turns that do not alternate human, gpt, human ...
    """
    for index, turn in enumerate(turns):
        expected = "gpt" if index % 2 else "human"
        if turn.speaker != expected:
            raise InputError(f"turn {index} is by {turn.speaker!r}, expected {expected!r}: turns must alternate")
    if not turns:
        raise InputError("a conversation without turns")
    if style.name == "plain":
        caption = turns[1].text.strip() + style.stop if len(turns) > 1 else ""
        return Rendered(IMAGE_TAG + caption, ((len(IMAGE_TAG), len(IMAGE_TAG) + len(caption)),) if caption else ())
    text, answers = style.system + style.separator, []
    for turn in turns:
        if turn.speaker == "human":
            words = turn.text
            if IMAGE_TAG in words:  # the tag moves to the front of its turn, as in LLaVA
                words = f"{IMAGE_TAG}\n{words.replace(IMAGE_TAG, '').strip()}".strip()
            text += f"{style.human}: {words}{style.separator}{style.assistant}:"
        else:
            start = len(text)
            text += f" {turn.text}{style.stop}"
            answers.append((start, len(text)))
    return Rendered(text, tuple(answers))


def render_prompt(question: str, style: str = "vicuna_v1") -> str:
    """Return the text of one question about an image, open for the answer."""
    return render([Turn("human", f"{IMAGE_TAG}\n{question}")], template(style)).text


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rendered conversation as tokens: three lists of one length."""

    input_ids: list[int]  # the image is one `IMAGE_ID`
    labels: list[int]  # `IGNORE`: not learned
    spans: list[tuple[int, int]]  # (start, end) in characters of the rendered text


def encode(tokenizer: Any, rendered: Rendered) -> Encoded:
    """Tokenise a rendered conversation; `tokenizer` is a fast Hugging Face one.

    The first stretch of text gets the beginning-of-sequence token. A token that straddles the start of an answer belongs
    to the prompt and is not learned.
    """
    encoded, position = Encoded([], [], []), 0

    def append(token: int, label: int, span: tuple[int, int]) -> None:
        encoded.input_ids.append(token)
        encoded.labels.append(label)
        encoded.spans.append(span)

    for index, piece in enumerate(rendered.text.split(IMAGE_TAG)):
        if index:
            append(IMAGE_ID, IGNORE, (position, position + len(IMAGE_TAG)))
            position += len(IMAGE_TAG)
        elif tokenizer.bos_token_id is not None:
            append(tokenizer.bos_token_id, IGNORE, (0, 0))
        if piece:
            # sentencepiece writes its prefix before a leading space too; fast tokenizers that drop it get one more space
            blank = " " if piece[0] in " ▁" and tokenizer.tokenize(" ") == ["▁"] else ""
            tokens = tokenizer(blank + piece, add_special_tokens=False, return_offsets_mapping=True)
            for token, offsets in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
                start, end = (position + max(0, offset - len(blank)) for offset in offsets)
                learned = any(a <= start and end <= b for a, b in rendered.answers)
                append(token, token if learned else IGNORE, (start, end))
        position += len(piece)
    return encoded
