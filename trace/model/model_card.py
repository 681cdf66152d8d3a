"""The model card of a saved folder: what it was made from, and under which licence its base is.

The licence is never guessed: it is what the base's own card says, or what is known of a published name; otherwise the
card says that it is unknown. Licence files of the base travel along.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from .presets import hub_repository

# What the cards of published bases say. Vicuna 1.5 is Llama 2, and so is what is trained from it.
LICENCES = (
    (r"(^|/)vicuna-(7|13)b-v1\.5", "llama2"),
    (r"(^|/)llama-?2-", "llama2"),
    (r"(^|/)llava-v1\.5-(7|13)b", "llama2"),
    (r"(^|/)nano(-base|-random)?$", "apache-2.0"),
)
NOTICES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
    "All Rights Reserved.",
}
# What travels along; the sentencepiece model is what the original code and other converters read.
_TRAVELLING = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "tokenizer.model")


@dataclass(frozen=True)
class Card:
    """`base` is the model that the weights come from, as a name or a path; `files` travel along with it."""

    base: str
    licence: str | None
    parts: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def card_of(base: str, folder: Path | None, parts: Sequence[str] = ()) -> Card:
    """The card of a model made from `base`, which lies in `folder` (None: nowhere, as a preset does)."""
    # Of a folder that is no download nothing but its own name: a path says nothing to others.
    name = base if folder is None else hub_repository(folder) or folder.resolve().name
    files = () if folder is None else tuple(sorted(one for pattern in _TRAVELLING for one in folder.glob(pattern)))
    licence = None if folder is None else _front_matter(folder / "README.md").get("license")
    if not isinstance(licence, str) or licence == "unknown":
        licence = _known(name) or _known(base)
    return Card(name, licence, tuple(parts), files)


def _known(name: str) -> str | None:
    return next((licence for pattern, licence in LICENCES if re.search(pattern, name.lower())), None)


def _front_matter(file: Path) -> dict[str, object]:
    if not file.is_file():
        return {}
    match = re.match(r"\A---\n(.*?)\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def write_card(folder: Path, card: Card, name: str, adapter: bool = False) -> None:
    """README.md and the files that travel along."""
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", card.base) is not None and not Path(card.base).exists()
    front = {
        "license": card.licence or "unknown",
        **({"base_model": card.base} if is_repository else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["llava", "robotics", "pointing"],
    }
    licence = (
        f"The weights come from {card.base}, whose licence is `{card.licence}`; it applies to this model too."
        if card.licence
        else f"The weights come from {card.base}, which does not say its licence. Find it out before you pass this on."
    )
    lines = [
        f"# {name}",
        "",
        "A LLaVA-1.5 model" + (", as a PEFT adapter over its base." if adapter else "."),
        "",
        *[f"- {part}" for part in card.parts],
        "",
        "## Licence",
        "",
        licence,
        *(["", NOTICES[card.licence]] if card.licence in NOTICES else []),
        "",
        "The data it was trained on carry terms of their own.",
    ]
    text = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    for file in card.files:
        shutil.copyfile(file, folder / file.name)
