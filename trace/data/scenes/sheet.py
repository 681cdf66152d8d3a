"""The contact sheet: a few samples with instruction, points and mask outline, to look at before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from .shortcuts import load_mask

TILE = 300
CAPTION = 44
COLUMNS = 5
OUTLINE, POINT, REFERENCE = (0, 255, 255), (255, 0, 0), (255, 255, 255)


def contact_sheet(folder: Path, samples: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw samples {"id", "instruction", "meta"}: ground truth outlined in cyan, points red, references boxed white."""
    rows = -(-len(samples) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), (255, 255, 255))
    for index, sample in enumerate(samples):
        row, column = divmod(index, COLUMNS)
        sheet.paste(_tile(folder, sample), (column * TILE, row * (TILE + CAPTION)))
    temporary = path.with_name(f".{path.name}.tmp")
    sheet.save(temporary, "PNG")
    temporary.replace(path)


def _tile(folder: Path, sample: Mapping[str, Any]) -> Image.Image:
    meta = sample["meta"]
    with Image.open(folder / "images" / f"{meta['view']}.png") as image:
        width, height = image.size
        scale = TILE / max(width, height)
        size = (round(width * scale), round(height * scale))
        picture = np.array(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    mask = load_mask(folder / meta["mask"])
    large = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    picture[large & ~binary_erosion(large, iterations=2)] = OUTLINE
    tile = Image.new("RGB", (TILE, TILE + CAPTION), (255, 255, 255))
    tile.paste(Image.fromarray(picture), (0, CAPTION))
    draw = ImageDraw.Draw(tile)
    for reference in meta["references"]:
        x0, y0, x1, y1 = (value * size[axis % 2] for axis, value in enumerate(reference["box"]))
        draw.rectangle((x0, y0 + CAPTION, x1, y1 + CAPTION), outline=REFERENCE)
    for x, y in meta["points"]:
        draw.circle((x * size[0], y * size[1] + CAPTION), 4, fill=POINT, outline=(255, 255, 255))
    font = ImageFont.load_default(14)
    words, line, lines = sample["instruction"].split(), "", []
    for word in words:
        if line and draw.textlength(f"{line} {word}", font) > TILE - 12:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    draw.multiline_text((6, 3), "\n".join([*lines, line]), (0, 0, 0), font)
    return tile
