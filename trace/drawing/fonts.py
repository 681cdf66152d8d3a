"""The fonts that pictures are lettered in: DejaVu Sans, and a font of the system for the writing that it lacks.

DejaVu Sans comes with matplotlib and has no Chinese, Japanese or Korean. A text that needs them is drawn with the
first fonts of `CJK` that the system has; where it has none, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

BASE = "DejaVu Sans"
CJK = (  # how the names of font files begin, best first
    "NotoSansCJK", "SourceHanSans", "NotoSansSC", "NotoSansTC", "NotoSansJP", "NotoSansKR", "PingFang", "Hiragino Sans",
    "AppleSDGothicNeo", "msyh", "YuGoth", "malgun", "wqy-zenhei", "wqy-microhei", "DroidSansFallback", "Arial Unicode",
)  # fmt: skip
_MEASURE = 64  # glyphs are measured at this size and scaled


@dataclass(frozen=True)
class Face:
    """A font file: the family's name for matplotlib, and the characters that it has."""

    family: str
    path: str
    glyphs: frozenset[int]


def families(text: str) -> list[str]:
    """The families that matplotlib needs for a text, in the order in which it looks for a character."""
    return list(dict.fromkeys(face.family for face in _faces(text, bold=False)))


def drawable(text: str, bold: bool, missing: str) -> str:
    """The text with `missing` for every character that no font has; lines are kept, other white space is a space."""
    faces = _faces(text, bold)
    return "".join(
        c if c == "\n" or any(ord(c) in face.glyphs for face in faces) else " " if c.isspace() else missing
        for c in text
    )


def length(text: str, bold: bool) -> float:
    """The width of a line, in heights of the font."""
    faces = _faces(text, bold)

    def face_of(character: str) -> Face:
        return next((face for face in faces if ord(character) in face.glyphs), faces[0])

    parts = groupby(text, face_of)
    return sum(_opened(face.path, _MEASURE).getlength("".join(part)) for face, part in parts) / _MEASURE


def pil_font(text: str, size: int) -> FreeTypeFont | ImageFont:
    """A font for Pillow to draw a line with: its own, or one of `CJK` that has more of the line's characters."""
    from PIL import ImageFont

    faces = _faces(text, bold=False)
    best = max(faces, key=lambda face: sum(ord(character) in face.glyphs for character in text))
    return ImageFont.load_default(size) if best is faces[0] else _opened(best.path, size)


def _faces(text: str, bold: bool) -> tuple[Face, ...]:
    base = _base(bold)
    enough = all(ord(character) in base.glyphs or character.isspace() for character in text)
    return (base,) if enough else (base, *_fallbacks())


@lru_cache(maxsize=2)
def _base(bold: bool) -> Face:
    from matplotlib.font_manager import FontProperties, findfont

    return _face(str(findfont(FontProperties(family=BASE, weight="bold" if bold else "normal"))))


@lru_cache(maxsize=1)
def _fallbacks() -> tuple[Face, ...]:
    """The fonts of `CJK` that this system has, made known to matplotlib, whose own list may be older than they are."""
    from matplotlib.font_manager import fontManager, get_font, ttfFontProperty

    found = []
    for path in _installed():
        entry = ttfFontProperty(get_font(path))
        fontManager.ttflist += [replace(entry, weight=weight) for weight in (400, 700)]  # also for bold: no warning
        fontManager.addfont(path)  # forgets what was looked up before
        found.append(_face(path))
    return tuple(found)


def _installed() -> Iterator[str]:
    """One file of each font of `CJK`: the regular weight if its name says so."""
    from matplotlib.font_manager import findSystemFonts

    paths = [Path(path) for path in findSystemFonts()]
    for name in CJK:
        files = sorted(path for path in paths if path.name.lower().startswith(name.lower()))
        yield from map(str, sorted(files, key=lambda path: "regular" not in path.name.lower())[:1])


def _face(path: str) -> Face:
    from matplotlib.font_manager import get_font

    font = get_font(path)
    return Face(font.family_name, path, frozenset(code for code in font.get_charmap() if code >= 32))


@lru_cache(maxsize=32)
def _opened(path: str, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, size)
