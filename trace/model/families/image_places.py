"""Where in the original image each image token comes from.

Places are boxes `[tokens, 4]` (x0, y0, x1, y1) in fractions of the image, NaN for tokens that stand for no place (ends of
rows). Processors that resize the picture to one grid say its shape. Others cut it into tiles: a ramp picture, whose red is
x and whose green is y, goes through the same processor, and each tile's place is read from its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...core.images import Square

GRID = 24  # patches along a side of the padded square, over which attention is laid

Floats = NDArray[np.float64]


def image_places(processor: Any, config: Any, image: Image.Image, inputs: Mapping[str, Tensor]) -> Floats:
    """The places of the image tokens of one conversation; `inputs` are the processor's tensors."""
    count = int((inputs["input_ids"] == config.image_token_id).sum())
    if "image_grid_thw" in inputs:  # one grid, of which neighbours are merged
        merge = processor.image_processor.merge_size
        return _grid(*(int(side) // merge for side in inputs["image_grid_thw"][0][1:]))
    if "image_position_ids" in inputs:  # Gemma4: x and y of each patch, -1 for padding; squares of patches are pooled
        pooled = (inputs["image_position_ids"][0].max(0).values + 1) // processor.image_processor.pooling_kernel_size
        columns, rows = (int(side) for side in pooled)
        return _grid(rows, columns)
    if "image_sizes" in inputs and inputs["pixel_values"].ndim == 5:
        return _thumbnail_and_tiles(config, image.size, inputs["pixel_values"].shape[-1], count)
    return _tiles(processor, image.size, count)


def _grid(rows: int, columns: int) -> Floats:
    y, x = np.mgrid[0:rows, 0:columns].astype(float)
    return np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], -1).reshape(-1, 4)


def _tiles(processor: Any, size: tuple[int, int], count: int) -> Floats:
    """Every tile is a square grid of tokens; the ramp says where the tile lies."""
    tiles = processor.image_processor([[_ramp(size)]], return_tensors="pt", do_normalize=False)["pixel_values"]
    tiles = tiles.flatten(0, -4).numpy()
    side = round((count / len(tiles)) ** 0.5)
    if side * side * len(tiles) != count:
        raise ValueError(f"{count} image tokens are not {len(tiles)} square tiles")
    places = []
    for red, green, blue in tiles:
        inside = blue > 0.99  # the rest is padding
        columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        # A line through the coordinates along the middle row and column, which extends into clipped borders.
        x = np.polyfit((columns + 0.5) / red.shape[1], red[rows[len(rows) // 2], columns], 1)
        y = np.polyfit((rows + 0.5) / red.shape[0], green[rows, columns[len(columns) // 2]], 1)
        box = _grid(side, side)
        places.append(np.stack([np.polyval(x if axis % 2 == 0 else y, box[:, axis]) for axis in range(4)], -1))
    return np.concatenate(places)


def _ramp(size: tuple[int, int]) -> Image.Image:
    width, height = size
    x = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.full((height, width), 255.0)], -1).round().astype(np.uint8))


def _thumbnail_and_tiles(config: Any, size: tuple[int, int], tile: int, count: int) -> Floats:
    """LLaVA-NeXT and OneVision: a thumbnail, then a canvas of tiles without its padding, a token at each row's end."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = tile // config.vision_config.patch_size
    shape = np.array([size[1], size[0]])
    canvas = np.array(get_anyres_image_grid_shape(tuple(shape), config.image_grid_pinpoints, tile)) * side
    content = shape * min(canvas / shape)  # rows and columns of the canvas that the image covers
    cut = ((canvas - np.floor(np.round(content, 7))) // 2).astype(int)
    kept, margin = canvas - 2 * cut, (canvas - content) / 2
    start, end = (cut - margin) / content, (cut + kept - margin) / content
    most = int(getattr(config, "vision_aspect_ratio", "anyres_max_0").removeprefix("anyres_max_"))
    if most and (ratio := (kept.prod() / (most * side**2)) ** 0.5) > 1.1:
        kept = (kept // ratio).astype(int)
    rows, columns = (int(number) for number in kept)
    tiles = _grid(rows, columns) * np.tile((end - start)[::-1], 2) + np.tile(start[::-1], 2)
    ends = np.full((rows, 1, 4), np.nan)
    tiles = np.concatenate([tiles.reshape(rows, columns, 4), ends], 1).reshape(-1, 4)
    if side**2 + len(tiles) != count:
        raise ValueError(f"{count} image tokens are not a thumbnail of {side**2} and {len(tiles)} of tiles")
    return np.concatenate([_grid(side, side), tiles])


def patch_weights(places: Floats, size: tuple[int, int], grid: int = GRID) -> NDArray[np.float32]:
    """`[tokens, grid * grid]`: each token's share over the patches of the padded square that its box covers.

    Rows sum to 1; a token without a place is spread over the whole image.
    """
    square = Square(*size)
    boxes = np.where(np.isnan(places), [0.0, 0.0, 1.0, 1.0], places)
    edges = np.arange(grid + 1) * square.side / grid
    overlaps = []
    for axis in (0, 1):
        low, high = (boxes[:, corner, None] * size[axis] + square.offset[axis] for corner in (axis, axis + 2))
        overlaps.append(np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None))
    weights = (overlaps[1][:, :, None] * overlaps[0][:, None, :]).reshape(len(boxes), -1)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
