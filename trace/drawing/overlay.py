"""Marks over an image: ground truth as a cyan outline, a prediction as dots or boxes, attention as a heat-map.

One room for how they look, so that a picture, the report and the demo agree. A model has one colour, on pictures, in
legends and in charts; that of the first or only one is red. Outlines and dots have a rim: they are to be seen on cyan
and red things too. Points are normalised to the original image, heat-maps have its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.points import Box, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from PIL.Image import Image

CYAN = "#00e5ff"
COLORS = ("#ec2a2e", "#1f5fbf", "#e39a00", "#2e8b57", "#8e44ad", "#7f7f7f")  # of models, by their place
RED = COLORS[0]
FEW = 20  # dots on a picture; of more, every one is smaller and fainter
SHRINK, FADE = 0.3, 0.2  # how fast: the powers of FEW / dots
STRONGEST = 0.85  # opacity of the hottest place: the image stays visible under it
DIMMED = 0.6  # brightness of the image under a heat-map, so that heat stands out on bright things too


def model_colors(labels: Iterable[str]) -> dict[str, str]:
    """The colour of each model, in the order in which they are named."""
    return {label: COLORS[place % len(COLORS)] for place, label in enumerate(dict.fromkeys(labels))}


def crowding(count: int) -> tuple[float, float]:
    """The size of a dot, as a factor, and its opacity where `count` of them share a picture: (1, 1) up to FEW."""
    part = min(1.0, FEW / max(count, 1))
    return part**SHRINK, part**FADE


def mask_outline(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask [height, width] as closed polygons [num_corners, 2] of (x, y), normalised.

    They run along pixel edges (the image's own edge included), so that a mask of one pixel is outlined too.
    """
    from contourpy import contour_generator

    height, width = mask.shape
    # each pixel becomes 2 x 2 samples: the half-way contour then follows pixel edges to a quarter pixel
    padded = np.pad(np.repeat(np.repeat(np.asarray(mask) > 0, 2, axis=0), 2, axis=1), 1).astype(np.float32)
    lines = contour_generator(z=padded, name="serial").lines(0.5)
    return [_corners((np.asarray(line) - 0.5) / (2 * width, 2 * height)) for line in lines]


def _corners(line: np.ndarray) -> np.ndarray:
    """A closed polygon without the points that lie on a straight run."""
    steps = np.diff(line, axis=0)
    cross = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
    keep = np.concatenate([[True], np.abs(cross) > 1e-12, [True]])
    return line[keep]


def draw_image(axes: Axes, image: Image | np.ndarray) -> tuple[int, int]:
    """The image with one axis unit a pixel; returns its (width, height)."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="bicubic", aspect="auto")
    axes.set_axis_off()
    return width, height


def draw_truth(axes: Axes, mask: np.ndarray, size: tuple[int, int], thin: bool = False) -> None:
    """The outline of a ground-truth mask in cyan, over an image of `size` (width, height)."""
    from matplotlib.patheffects import withStroke

    line = 1.2 if thin else 1.8
    for polygon in mask_outline(mask):
        axes.plot(
            *(polygon * size).T,
            color=CYAN,
            linewidth=line,
            path_effects=[withStroke(linewidth=line + 1.4, foreground="#06343a")],
        )


def draw_answer(
    axes: Axes, items: Sequence[Point | Box], size: tuple[int, int], dot: float = 7.0, color: str = RED
) -> int:
    """Points and boxes of one model; returns how many points lie outside the image (drawn hollow, at its edge)."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    width, height = size
    factor, alpha = crowding(len(items))
    for item in items:
        if isinstance(item, Box):
            corner = item.x0 * width, item.y0 * height
            extent = (item.x1 - item.x0) * width, (item.y1 - item.y0) * height
            effects = [withStroke(linewidth=3.6 * factor, foreground="white", alpha=alpha)]
            axes.add_patch(Rectangle(corner, *extent, fill=False, edgecolor=color, linewidth=2 * factor, alpha=alpha,
                                     path_effects=effects))  # fmt: skip
    points = [item for item in items if isinstance(item, Point)]
    outside = [point for point in points if not point.inside]
    looks = ([point for point in points if point.inside], color, "white", 1.3), (outside, "none", color, 1.8)
    for shown, face, edge, line in looks:
        if shown:
            places = np.clip([(point.x, point.y) for point in shown], 0, 1) * size
            axes.plot(*places.T, "o", markersize=dot * factor, markerfacecolor=face, markeredgecolor=edge,
                      markeredgewidth=line * factor, alpha=alpha, clip_on=False, zorder=5)  # fmt: skip
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return len(outside)


def heat_colors() -> Colormap:
    """The colours of attention: matplotlib's inferno without its black, which would look like shadow."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["inferno"](np.linspace(0.22, 1, 256)))


def blend(image: Image | np.ndarray, heat: np.ndarray, top: float) -> np.ndarray:
    """The dimmed image under a heat-map: RGB [height, width, 3], uint8.

    `heat` [height, width] is coloured from 0 to `top`, one `top` for all maps that are to be compared; the hotter,
    the more opaque, so that a place without attention shows the image.
    """
    pixels = rgb(image) / 255 * DIMMED
    level = np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)
    opacity = (STRONGEST * level**0.7)[..., None]
    mixed = pixels * (1 - opacity) + heat_colors()(level)[..., :3] * opacity
    return (mixed * 255).round().astype(np.uint8)


def rgb(image: Image | np.ndarray) -> np.ndarray:
    """Pixels [height, width, 3] of an image in any mode."""
    if isinstance(image, np.ndarray):
        return image
    return np.asarray(image.convert("RGB"))
