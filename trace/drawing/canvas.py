"""A matplotlib figure laid out in pixels from the top left, with wrapped text in any script.

The height of these figures depends on a model's words: text is measured and wrapped first, then the figure gets its
height, so nothing overlaps. Text is drawn literally: `$` starts no formula, and a glyph that no font has becomes a box.
DejaVu Sans comes with matplotlib and lacks Chinese, Japanese and Korean; those use the first installed fonts of `CJK`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

DPI = 100  # one unit of a canvas is one pixel at this resolution
LINE_HEIGHT = 1.38  # over the font's height
INK, FADED, BAD = "#1b2430", "#6b7683", "#b3261e"
MISSING_GLYPH = "\u25a1"
BASE_FONT = "DejaVu Sans"
CJK = (  # how the names of font files begin, best first
    "NotoSansCJK", "SourceHanSans", "NotoSansSC", "NotoSansTC", "NotoSansJP", "NotoSansKR", "PingFang", "Hiragino Sans",
    "AppleSDGothicNeo", "msyh", "YuGoth", "malgun", "wqy-zenhei", "wqy-microhei", "DroidSansFallback", "Arial Unicode",
)  # fmt: skip
MEASURED_SIZE = 64  # glyphs are measured at this font size and scaled


@dataclass(frozen=True, slots=True)
class TextBlock:
    """A paragraph: `size` in points, `gap` in pixels above it, `max_lines` 0 for no limit (a cut text ends in …)."""

    text: str
    size: float = 8.5
    bold: bool = False
    color: str = INK
    gap: float = 0.0
    max_lines: int = 0

    @property
    def line_height(self) -> float:
        return self.size * DPI / 72 * LINE_HEIGHT


class Canvas:
    """A figure of `width` x `height` pixels; positions count from the top left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure: Figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes over the given rectangle."""
        bottom = 1 - (y + height) / self.height
        return self.figure.add_axes((x / self.width, bottom, width / self.width, height / self.height))

    def write(self, x: float, y: float, width: float, blocks: Sequence[TextBlock]) -> float:
        """Write paragraphs below one another in a column of `width` pixels; return the y below the last line."""
        for block in blocks:
            y += block.gap
            for line in wrap_text(block, width):
                self.figure.text(
                    x / self.width, 1 - y / self.height, line, fontsize=block.size, color=block.color, va="top",
                    fontweight="bold" if block.bold else "normal", family=font_families(line), parse_math=False,
                )  # fmt: skip
                y += block.line_height
        return y


def text_height(width: float, blocks: Sequence[TextBlock]) -> float:
    """Return the height in pixels that `Canvas.write` needs for these blocks."""
    return sum(block.gap + len(wrap_text(block, width)) * block.line_height for block in blocks)


@lru_cache(maxsize=4096)
def wrap_text(block: TextBlock, width: float) -> tuple[str, ...]:
    """Break a block into lines of at most `width` pixels; a word longer than a line is broken too.

    Characters that no font has become boxes.
    """
    text_width = partial(line_width, size=block.size, bold=block.bold)
    lines: list[str] = []
    space = text_width(" ")
    fonts = _fonts_for(block.text, block.bold)
    drawable = (c if c == "\n" or any(ord(c) in font.glyphs for font in fonts) else " " if c.isspace() else MISSING_GLYPH
                for c in block.text)  # fmt: skip
    for paragraph in "".join(drawable).splitlines() or [""]:
        line, used = "", 0.0
        for word in paragraph.split():
            word_width = text_width(word)
            if line and used + space + word_width <= width:
                line, used = f"{line} {word}", used + space + word_width
                continue
            if line:
                lines.append(line)
            line, used = "", 0.0
            for piece in [word] if word_width <= width else word:
                piece_width = text_width(piece)
                if line and used + piece_width > width:
                    lines.append(line)
                    line, used = "", 0.0
                line, used = line + piece, used + piece_width
            if block.max_lines and len(lines) > block.max_lines:
                break
        lines.append(line)
        if block.max_lines and len(lines) > block.max_lines:
            last = lines[block.max_lines - 1]
            while last and text_width(last + " \u2026") > width:
                last = last[:-1]
            return (*lines[: block.max_lines - 1], last.rstrip() + " \u2026")
    return tuple(lines)


def figure_to_image(figure: Figure) -> Image:
    """Render a figure in memory, one image pixel a canvas pixel."""
    from PIL import Image as Pillow

    figure.canvas.draw()
    return Pillow.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def save_figure(figure: Figure, path: Path, scale: float = 1.5) -> None:
    """Write a figure as PNG or JPEG (by the suffix), `scale` image pixels a canvas pixel; never half written."""
    jpeg = path.suffix.lower() in {".jpg", ".jpeg"}
    # PNG's default compression takes longer than the drawing, for a few percent of the size.
    options = {"quality": 88} if jpeg else {"compress_level": 1}
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI * scale, pil_kwargs=options)


def save_thumbnail(image: Image, path: Path, side: int = 640) -> None:
    """Write the image as JPEG, its longer side at most `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    with replacing(path) as temporary:
        small.save(temporary, "JPEG", quality=90)


def file_stem(question_id: int | str) -> str:
    """Return a file name for a question; an id with other characters gets a hash, so that no two share a file."""
    name = str(question_id)
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:80]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# --- fonts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Font:
    """A font file: the family's name for matplotlib, and the code points it has."""

    family: str
    path: str
    glyphs: frozenset[int]


def font_families(text: str) -> list[str]:
    """Return the font families that matplotlib needs for a text, in the order in which it looks for a character."""
    return list(dict.fromkeys(font.family for font in _fonts_for(text, bold=False)))


def pil_font(text: str, size: int) -> FreeTypeFont | ImageFont:
    """Return a font for Pillow to draw a line with: its default, or one of `CJK` that has more of the characters."""
    from PIL import ImageFont

    fonts = _fonts_for(text, bold=False)
    best = max(fonts, key=lambda font: sum(ord(character) in font.glyphs for character in text))
    return ImageFont.load_default(size) if best is fonts[0] else _open_font(best.path, size)


@lru_cache(maxsize=65536)
def line_width(text: str, size: float, bold: bool = False) -> float:
    """Return the width of a line in pixels; `size` is in points."""
    fonts = _fonts_for(text, bold)
    runs = groupby(text, lambda c: next((font for font in fonts if ord(c) in font.glyphs), fonts[0]))
    width = sum(_open_font(font.path, MEASURED_SIZE).getlength("".join(run)) for font, run in runs)
    return width / MEASURED_SIZE * size * DPI / 72 * 1.02  # matplotlib hints glyphs a little wider


def _fonts_for(text: str, bold: bool) -> tuple[Font, ...]:
    base = _base_font(bold)
    complete = all(ord(character) in base.glyphs or character.isspace() for character in text)
    return (base,) if complete else (base, *cjk_fonts())


@lru_cache(maxsize=2)
def _base_font(bold: bool) -> Font:
    from matplotlib.font_manager import FontProperties, findfont

    return _read_font(str(findfont(FontProperties(family=BASE_FONT, weight="bold" if bold else "normal"))))


@lru_cache(maxsize=1)
def cjk_fonts() -> tuple[Font, ...]:
    """Return one installed font for each name in `CJK` (regular weight if there is one), also added to matplotlib's list."""
    from matplotlib.font_manager import findSystemFonts, fontManager, get_font, ttfFontProperty

    installed = sorted(map(Path, findSystemFonts()))
    fonts = []
    for name in CJK:
        files = [path for path in installed if path.name.lower().startswith(name.lower())]
        for path in map(str, sorted(files, key=lambda path: "regular" not in path.name.lower())[:1]):
            entry = ttfFontProperty(get_font(path))
            fontManager.ttflist += [replace(entry, weight=weight) for weight in (400, 700)]  # bold too: no warning
            fontManager.addfont(path)  # clears matplotlib's cache of earlier look-ups
            fonts.append(_read_font(path))
    return tuple(fonts)


def _read_font(path: str) -> Font:
    from matplotlib.font_manager import get_font

    font = get_font(path)
    return Font(font.family_name, path, frozenset(code for code in font.get_charmap() if code >= 32))


@lru_cache(maxsize=32)
def _open_font(path: str, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, size)
