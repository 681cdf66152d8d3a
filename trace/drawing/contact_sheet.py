"""A contact sheet: many small pictures in one PNG, each below its caption, with its mask, points and boxes.

Drawn by Pillow: data sets are written on machines that have no time to spare for figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..utils.files import replacing
from .canvas import pil_font

SIDE = 300  # the longer side of a picture
LINE, LINES = 17, 4
CAPTION = LINES * LINE + 5  # above the picture; short ones stand at its bottom, near their own picture
GAP = 16  # to the next picture
RIM = 2  # width of a mask's outline
OUTLINE, POINT, WHITE = (0, 255, 255), (255, 0, 0), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a sheet.

    Args:
        points: (x, y), red; like the boxes in fractions of the picture.
        boxes: (x0, y0, x1, y1), white.
        mask: `[height, width]` in the picture's size, outlined in cyan.
    """

    picture: Image.Image
    caption: str
    points: Iterable[Sequence[float]] = ()
    boxes: Iterable[Sequence[float]] = ()
    mask: NDArray[np.bool_] | None = None


def draw_contact_sheet(tiles: Iterable[Tile], path: Path, columns: int = 5) -> None:
    """Write the tiles, row by row, as a PNG. One picture at a time is in memory if `tiles` is a generator."""
    drawn = [_draw(tile) for tile in tiles]
    starts = range(0, len(drawn), columns)
    heights = [max(tile.height for tile in drawn[start : start + columns]) for start in starts]
    width = min(columns, len(drawn)) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP), WHITE)
    for index, tile in enumerate(drawn):
        row, column = divmod(index, columns)
        sheet.paste(tile, (GAP + column * (SIDE + GAP), sum(heights[:row])))
    with replacing(path) as unfinished:
        sheet.save(unfinished, "PNG")


def _draw(tile: Tile) -> Image.Image:
    from scipy.ndimage import binary_erosion

    scale = SIDE / max(tile.picture.size)
    width, height = (max(1, round(side * scale)) for side in tile.picture.size)
    pixels = np.array(tile.picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
    if tile.mask is not None:
        large = np.array(Image.fromarray(tile.mask).resize((width, height), Image.Resampling.NEAREST))
        pixels[large & ~binary_erosion(large, iterations=RIM)] = OUTLINE
    drawn = Image.new("RGB", (SIDE, height + CAPTION), WHITE)
    drawn.paste(Image.fromarray(pixels), (0, CAPTION))
    draw, font = ImageDraw.Draw(drawn), pil_font(tile.caption, 14)
    for x0, y0, x1, y1 in tile.boxes:
        draw.rectangle((x0 * width, y0 * height + CAPTION, x1 * width, y1 * height + CAPTION), outline=WHITE)
    for x, y in tile.points:
        draw.circle((x * width, y * height + CAPTION), 4, fill=POINT, outline=WHITE)
    for above, line in enumerate(reversed(wrap_caption(tile.caption, draw, font)[:LINES]), 1):
        draw.text((0, CAPTION - 4 - above * LINE), line, (0, 0, 0), font)
    return drawn


def wrap_caption(text: str, draw: ImageDraw.ImageDraw, font: Any) -> list[str]:
    """The lines of a text in the width of a tile."""
    lines, line = [], ""
    for word in text.split():
        if line and draw.textlength(f"{line} {word}", font) > SIDE:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
        while draw.textlength(line, font) > SIDE:  # one word: Chinese and Japanese have no spaces
            end = next(end for end in range(len(line) - 1, 0, -1) if draw.textlength(line[:end], font) <= SIDE)
            lines.append(line[:end])
            line = line[end:]
    return [*lines, line]
