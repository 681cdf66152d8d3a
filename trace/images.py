"""The coordinate frames of an image: the original one, and the padded square that the vision tower sees.

LLaVA pads an image to a square with its mean colour before CLIP's resize, so the tower's grid of patches covers the
square while points, masks and people speak of the original image. Every step between the two frames is taken here.
An odd difference in side lengths puts the smaller half at the left / top, as the original does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .command import InputError
from .points import Point

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PAD_COLOR = tuple(int(255 * channel) for channel in CLIP_MEAN)


@dataclass(frozen=True, slots=True)
class Square:
    """The padded square of an image of `width` x `height` pixels."""

    width: int
    height: int

    @property
    def side(self) -> int:
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """Pixels of padding left of and above the image."""
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def pad_point(self, point: Point) -> Point:
        """From the original image's frame to the square's; both normalised to [0, 1]."""
        left, top = self.offset
        return Point((point.x * self.width + left) / self.side, (point.y * self.height + top) / self.side)

    def unpad_point(self, point: Point) -> Point:
        """The inverse of `pad_point`; a point on the padding falls outside [0, 1]."""
        left, top = self.offset
        return Point((point.x * self.side - left) / self.width, (point.y * self.side - top) / self.height)


def pad_to_square(image: Image.Image, fill: tuple[int, ...] = PAD_COLOR) -> Image.Image:
    """The image centred on a square of its longer side, filled with CLIP's mean colour."""
    square = Square(*image.size)
    if image.width == image.height:
        return image
    padded = Image.new(image.mode, (square.side, square.side), fill if image.mode == "RGB" else 0)
    padded.paste(image, square.offset)
    return padded


def unpad_map(grid: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map over the padded square's patches, laid over the original image.

    Args:
        grid: `[rows, columns]`, one value a patch of the square.
        size: `(width, height)` of the original image in pixels.
    Returns:
        `[height, width]`, bilinear between the patches' centres.
    """
    square = Square(*size)
    whole = Image.fromarray(np.asarray(grid, dtype=np.float32)).resize((square.side,) * 2, Image.Resampling.BILINEAR)
    left, top = square.offset
    return np.asarray(whole, dtype=np.float32)[top : top + square.height, left : left + square.width]


def patch_coverage(mask: NDArray[np.bool_], patches: int) -> NDArray[np.float32]:
    """The share of every patch of the padded square that a mask over the original image covers.

    Args:
        mask: `[height, width]` of the original image.
        patches: patches along a side of the square.
    Returns:
        `[patches, patches]` in [0, 1].
    """
    height, width = mask.shape
    square = Square(width, height)
    left, top = square.offset
    whole = np.zeros((square.side, square.side), dtype=np.float32)
    whole[top : top + height, left : left + width] = mask
    return np.asarray(Image.fromarray(whole).resize((patches, patches), Image.Resampling.BOX), dtype=np.float32)


# What PIL raises for a file that is no image, is cut off, or is damaged: by format it is any of these.
BROKEN_IMAGE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def open_image(path: str | Path) -> Image.Image:
    """An image as RGB, read whole.

    Raises:
        InputError: the file is missing, or is no image that can be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":  # in which range, nobody says; PIL would clip it to 0 to 255 and make 0 to 1 black
                raise InputError(f"the image {path} has floating-point pixels; store it with 8 bits a channel")
            if image.mode.startswith("I"):  # PIL would clip its 16 bits to 8: everything but black becomes white
                return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"the image {path} does not exist") from None
    except BROKEN_IMAGE as error:
        raise InputError(f"the image {path} cannot be read: {error}") from None
