"""The contact sheet: a few samples with instruction, points and mask outline, to look at before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from ...core.records import replacing
from ...drawing.fonts import pil_font
from .questions.baselines import load_mask

TILE = 300  # the longer side of a picture
LINE, LINES = 17, 4
CAPTION = LINES * LINE + 5  # above the picture; short ones stand at its bottom, near their own picture
GAP = 16  # to the next picture
COLUMNS = 5
OUTLINE, POINT, REFERENCE = (0, 255, 255), (255, 0, 0), (255, 255, 255)


def contact_sheet(folder: Path, samples: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw samples {"id", "instruction", "meta"}: ground truth outlined in cyan, points red, references boxed white."""
    tiles = [_tile(folder, sample) for sample in samples]
    rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (COLUMNS * (TILE + GAP) + GAP, sum(heights) + GAP), (255, 255, 255))
    for index, row in enumerate(rows):
        for column, tile in enumerate(row):
            sheet.paste(tile, (GAP + column * (TILE + GAP), sum(heights[:index])))
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def _tile(folder: Path, sample: Mapping[str, Any]) -> Image.Image:
    """The picture below its instruction; what rectangles mark in the picture itself needs no box."""
    meta = sample["meta"]
    with Image.open(folder / meta["image"]) as image:
        width, height = image.size
        scale = TILE / max(width, height)
        size = (round(width * scale), round(height * scale))
        picture = np.array(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    mask = load_mask(folder / meta["mask"])
    large = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    picture[large & ~binary_erosion(large, iterations=2)] = OUTLINE
    tile = Image.new("RGB", (TILE, size[1] + CAPTION), (255, 255, 255))
    tile.paste(Image.fromarray(picture), (0, CAPTION))
    draw = ImageDraw.Draw(tile)
    marked = {mark["instance"] for mark in meta.get("marks", ())}
    for reference in meta["references"]:
        if reference["instance"] not in marked:
            x0, y0, x1, y1 = (value * size[axis % 2] for axis, value in enumerate(reference["box"]))
            draw.rectangle((x0, y0 + CAPTION, x1, y1 + CAPTION), outline=REFERENCE)
    for x, y in meta["points"]:
        draw.circle((x * size[0], y * size[1] + CAPTION), 4, fill=POINT, outline=(255, 255, 255))
    font = pil_font(sample["instruction"], 14)
    lines = _lines(sample["instruction"], draw, font)[:LINES]
    for above, line in enumerate(reversed(lines), 1):
        draw.text((0, CAPTION - 4 - above * LINE), line, (0, 0, 0), font)
    return tile


def _lines(text: str, draw: ImageDraw.ImageDraw, font: Any) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and draw.textlength(f"{line} {word}", font) > TILE:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
        while draw.textlength(line, font) > TILE:  # one word: Chinese and Japanese have no spaces
            end = next(end for end in range(len(line) - 1, 0, -1) if draw.textlength(line[:end], font) <= TILE)
            lines.append(line[:end])
            line = line[end:]
    return [*lines, line]
