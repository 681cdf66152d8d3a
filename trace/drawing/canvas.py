"""Pages of pictures and text: a matplotlib figure laid out in pixels from the top left, with wrapped text.

Figures whose height depends on a model's words cannot be laid out by matplotlib's grids: the text is measured and
wrapped first, the height follows, and nothing overlaps. Text is drawn literally: `$` starts no formula, control
characters and glyphs that no font has become a box, a word longer than the line is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.files import replacing
from .fonts import drawable, families, length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

DPI = 100  # one unit of a page is one pixel at this resolution
LINE = 1.38  # line height over font height
INK, FADED, BAD = "#1b2430", "#6b7683", "#b3261e"
_BOX = "\u25a1"


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph: its text, font size in points, and `gap`, the pixels left free above it."""

    text: str
    size: float = 8.5
    bold: bool = False
    color: str = INK
    gap: float = 0.0
    max_lines: int = 0  # 0: no limit; the last line of a cut text ends in an ellipsis

    @property
    def line_height(self) -> float:
        return self.size * DPI / 72 * LINE


class Page:
    """A figure of `width` x `height` pixels; every position counts from the top left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure: Figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes over the given rectangle."""
        bottom = 1 - (y + height) / self.height
        return self.figure.add_axes((x / self.width, bottom, width / self.width, height / self.height))

    def write(self, x: float, y: float, width: float, blocks: Sequence[Block]) -> float:
        """Paragraphs below one another in a column of `width` pixels; returns the y below the last line."""
        for block in blocks:
            y += block.gap
            for line in wrapped(block, width):
                self.figure.text(
                    x / self.width,
                    1 - y / self.height,
                    line,
                    fontsize=block.size,
                    fontweight="bold" if block.bold else "normal",
                    color=block.color,
                    va="top",
                    family=families(line),
                    parse_math=False,
                )
                y += block.line_height
        return y


def text_height(width: float, blocks: Sequence[Block]) -> float:
    """The pixels that `Page.write` will need for these blocks in a column of `width` pixels."""
    return sum(block.gap + len(wrapped(block, width)) * block.line_height for block in blocks)


def wrapped(block: Block, width: float) -> list[str]:
    """The lines of a block in a column of `width` pixels."""
    return list(_wrapped(block.text, block.size, block.bold, width, block.max_lines))


@lru_cache(maxsize=4096)
def _wrapped(text: str, size: float, bold: bool, width: float, max_lines: int) -> tuple[str, ...]:
    lines: list[str] = []
    space = _length(" ", size, bold)
    for paragraph in drawable(text, bold, _BOX).splitlines() or [""]:
        line, used = "", 0.0
        for word in paragraph.split():
            wide = _length(word, size, bold)
            if line and used + space + wide <= width:
                line, used = f"{line} {word}", used + space + wide
                continue
            if line:
                lines.append(line)
            *full, line = [word] if wide <= width else _broken(word, size, bold, width)
            lines.extend(full)
            used = _length(line, size, bold)
            if max_lines and len(lines) > max_lines:
                break
        lines.append(line)
        if max_lines and len(lines) > max_lines:
            return (*lines[: max_lines - 1], _ellipsis(lines[max_lines - 1], size, bold, width))
    return tuple(lines)


def _broken(word: str, size: float, bold: bool, width: float) -> list[str]:
    """A word cut into pieces that fit; most words are one piece."""
    pieces, piece, used = [], "", 0.0
    for character in word:
        wide = _length(character, size, bold)
        if piece and used + wide > width:
            pieces.append(piece)
            piece, used = "", 0.0
        piece, used = piece + character, used + wide
    return [*pieces, piece]


def _ellipsis(line: str, size: float, bold: bool, width: float) -> str:
    while line and _length(line + " \u2026", size, bold) > width:
        line = line[:-1]
    return line.rstrip() + " \u2026"


@lru_cache(maxsize=65536)
def _length(text: str, size: float, bold: bool) -> float:
    """Width in pixels, with a margin of 2 %: the drawing library hints glyphs a little wider."""
    return length(text, bold) * size * DPI / 72 * 1.02


def as_image(figure: Figure) -> Image:
    """A figure as a picture in memory, one pixel to a page's pixel."""
    from PIL import Image as Pillow

    figure.canvas.draw()
    return Pillow.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def save(figure: Figure, path: Path, scale: float = 1.5) -> None:
    """Write a figure as PNG or JPEG (by the suffix), `scale` picture pixels to a page's pixel. Never half written."""
    jpeg = path.suffix.lower() in {".jpg", ".jpeg"}
    # PNG's default compression takes longer than the drawing, for a few percent of the size.
    options = {"quality": 88} if jpeg else {"compress_level": 1}
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI * scale, pil_kwargs=options)
