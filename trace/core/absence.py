"""The answer that there is nothing to point at: how it is written, and how it is read in any model's words.

The canonical form is `None: there is no mug on the shelf.` Read as the same are an empty list (`[]`, `{"points": []}`)
and sentences that an object or a place is not there ("There is no mug in the image.", "I cannot find any free space.").
A refusal to answer ("I'm sorry, I can't help with that.", "I cannot see the image.") is not.
"""

from __future__ import annotations

import re

_FORM = re.compile(r"(?:none|nothing)\b(?=[\s*_`\"'\]).]*(?:[:;,.–—-]|\Z))", re.IGNORECASE)
_EMPTY = re.compile(r"(?:\w{1,12}\s*+(?:[:=]\s*+)?)?[\[{(]\s*(?:[\"'][\w ]{1,20}[\"']\s*:\s*\[\s*\]\s*)?[\]})]")
_AROUND = " \t\r\n`*_\"'.:>#-"
# A noun that only the model's own view or the form of the answer can lack, and "no" that denies no thing.
_NOT_A_THING = (
    r"(?!(?:\w+\s)?(?:images?|pictures?|photos?|attachments?|files?|coordinates?|information|context|doubt|way|"
    r"need|problem|issue|question|reason|idea|access|ability|longer)\b)"
)
_SAYS = re.compile(
    rf"""\b(?:there|here)(?:['’]s|\s(?:is|are|was|were|appears?\sto\sbe|seems?\sto\sbe))\s(?:currently\s|also\s)?
           (?:no(?:t\s(?:any|an?|enough))?|none|nothing|zero)\b\s?+{_NOT_A_THING}
    | \b(?:there|here)\s(?:is|are|was|were)n['’]t\s(?:any|an?|enough)?\s?+{_NOT_A_THING}
    | \bno\ssuch\s\w
    | \bdo(?:es)?(?:\s?not|n['’]t)\s(?:contain|show|include|have)\s(?:any|an?|the|such|enough)\b\s?+{_NOT_A_THING}
    | \bno\s{_NOT_A_THING}(?:[\w-]+\s){{1,8}}?(?:(?:is|are|was|were|can\sbe)\s(?:\w+\s)?)?
      (?:visible|present|found|seen|located|available|exists?|in\sthe\s(?:image|picture|photo|scene|view)|matche?s?)\b
    | \b(?:is|are|was|were|does|do|can|could)(?:\s?not|n['’]t)\s(?:\w+\s){{0,2}}?
      (?:visible|present|exist|there|available|in\sthe\s(?:image|picture|photo|scene|view)|(?:be\s)?(?:found|seen|located))\b
    | \b(?:can|could|do|did|am)(?:\s?not|n['’]t)\s(?:able\sto\s)?(?:see|find|locate|detect|spot|identify)\s
      (?:any|an?|the|such|it|one|anything|this|that)\b\s?+{_NOT_A_THING}
    | \bunable\sto\s(?:see|find|locate|detect|spot)\s(?:any|an?|the|such|it|one|anything)\b\s?+{_NOT_A_THING}
    | \bnothing\s(?:to\spoint|matches|fits|like\sthat|of\sthe\skind)
    """,
    re.VERBOSE | re.IGNORECASE,
)


def format_none(reason: str) -> str:
    """Write the answer that there is nothing to point at; `reason` is a clause such as "there is no mug"."""
    return f"None: {reason}"


def find_none(answer: str) -> tuple[int, int] | None:
    """Return the characters of `answer`, which holds no points, that say that there is nothing to point at.

    The span is of the word "None" in the canonical form, which decides the answer, otherwise of the phrase. None if the
    answer does not say so.
    """
    start = len(answer) - len(answer.lstrip(_AROUND + "[("))
    if form := _FORM.match(answer, start):
        return form.span()
    end = len(answer.rstrip(_AROUND))
    begin = len(answer) - len(answer.lstrip(_AROUND))
    if begin < end and _EMPTY.fullmatch(answer, begin, end):
        return begin, end
    said = _SAYS.search(answer)
    return said.span() if said else None
