"""Marks over an image: the ground truth as a cyan outline, predictions as dots or boxes, attention as a heat map.

Figures, the report and the demo all take colours and shapes from here. A model has one colour everywhere, by its
position; the first or only one is red. Points are normalised to the original image, heat maps have its size.
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
COLORS = ("#ec2a2e", "#1f5fbf", "#e39a00", "#2e8b57", "#8e44ad", "#7f7f7f")  # of models, by position
RED = COLORS[0]
FEW_DOTS = 20  # above this number, dots become smaller and fainter
SHRINK, FADE = 0.3, 0.2  # how fast: the powers of FEW_DOTS / dots
MAX_OPACITY = 0.85  # of the hottest cell: the image stays visible under it
DIMMED = 0.6  # brightness of the image under a heat map, so that heat stands out on bright objects too

Outline = tuple[tuple[tuple[float, float], ...], ...]  # closed polygons of normalised (x, y)


def model_colors(labels: Iterable[str]) -> dict[str, str]:
    """Return the colour of each model, in the order of the labels."""
    return {label: COLORS[index % len(COLORS)] for index, label in enumerate(dict.fromkeys(labels))}


def dot_style(count: int) -> tuple[float, float]:
    """Return a dot's size factor and opacity when `count` dots share an image: (1, 1) up to FEW_DOTS."""
    part = min(1.0, FEW_DOTS / max(count, 1))
    return part**SHRINK, part**FADE


def mask_outline(mask: np.ndarray | None) -> Outline:
    """Return the outlines of a mask [height, width], rounded to 4 decimals; () without a mask.

    They run along pixel edges (the image's own edge included), so that a mask of one pixel has an outline too.
    """
    from contourpy import contour_generator

    if mask is None:
        return ()
    height, width = mask.shape
    # each pixel becomes 2 x 2 samples: the half-way contour then follows pixel edges to a quarter pixel
    padded = np.pad(np.repeat(np.repeat(np.asarray(mask) > 0, 2, axis=0), 2, axis=1), 1).astype(np.float32)
    polygons = []
    for line in contour_generator(z=padded, name="serial").lines(0.5):
        corners = (np.asarray(line) - 0.5) / (2 * width, 2 * height)
        sides = np.diff(corners, axis=0)
        turn = sides[:-1, 0] * sides[1:, 1] - sides[:-1, 1] * sides[1:, 0]
        corners = corners[np.concatenate([[True], np.abs(turn) > 1e-12, [True]])]  # no points on straight runs
        polygons.append(tuple((round(x, 4), round(y, 4)) for x, y in corners.tolist()))
    return tuple(polygons)


def draw_image(axes: Axes, image: Image | np.ndarray) -> tuple[int, int]:
    """Draw the image with one axis unit a pixel; return its (width, height)."""
    pixels = rgb(image)
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="bicubic", aspect="auto")
    axes.set_axis_off()
    return width, height


def draw_truth(axes: Axes, mask: np.ndarray, size: tuple[int, int], line: float = 1.8) -> None:
    """Draw the outline of a ground-truth mask in cyan over an image of `size` (width, height)."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=line + 1.4, foreground="#06343a")]  # visible on cyan objects too
    for polygon in mask_outline(mask):
        axes.plot(*(np.array(polygon) * size).T, color=CYAN, linewidth=line, path_effects=rim)


def draw_answer(
    axes: Axes, items: Sequence[Point | Box], size: tuple[int, int], dot: float = 7.0, color: str = RED
) -> None:
    """Draw the points and boxes of one model; points outside are hollow, at the edge."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    width, height = size
    factor, alpha = dot_style(len(items))
    for item in items:
        if isinstance(item, Box):
            corner = item.x0 * width, item.y0 * height
            sides = (item.x1 - item.x0) * width, (item.y1 - item.y0) * height
            rim = [withStroke(linewidth=3.6 * factor, foreground="white", alpha=alpha)]
            axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=color, linewidth=2 * factor, alpha=alpha,
                                     path_effects=rim))  # fmt: skip
    points = [item for item in items if isinstance(item, Point)]
    outside = [point for point in points if not point.inside]
    styles = ([point for point in points if point.inside], color, "white", 1.3), (outside, "none", color, 1.8)
    for group, face, edge, line in styles:
        if group:
            places = np.clip([(point.x, point.y) for point in group], 0, 1) * size
            axes.plot(*places.T, "o", markersize=dot * factor, markerfacecolor=face, markeredgecolor=edge,
                      markeredgewidth=line * factor, alpha=alpha, clip_on=False, zorder=5)  # fmt: skip
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def heat_colormap() -> Colormap:
    """Return matplotlib's inferno without its black end, which would look like shadow."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["inferno"](np.linspace(0.22, 1, 256)))


def blend(image: Image | np.ndarray, heat: np.ndarray, vmax: float) -> np.ndarray:
    """Lay a heat map [height, width] over the dimmed image; return RGB [height, width, 3], uint8.

    Colours go from 0 to `vmax`, one `vmax` for all maps that are compared; the hotter, the more opaque.
    """
    pixels = rgb(image) / 255 * DIMMED
    level = np.clip(heat / vmax, 0, 1) if vmax > 0 else np.zeros_like(heat)
    opacity = (MAX_OPACITY * level**0.7)[..., None]
    mixed = pixels * (1 - opacity) + heat_colormap()(level)[..., :3] * opacity
    return (mixed * 255).round().astype(np.uint8)


def rgb(image: Image | np.ndarray) -> np.ndarray:
    """Return the pixels [height, width, 3] of an image in any mode."""
    return image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))
