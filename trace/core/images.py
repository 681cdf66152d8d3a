"""Images and masks: how each is read, and the conversion between the original image and the padded square.

LLaVA pads an image to a square with its mean colour before CLIP's resize, so the tower's grid of patches covers the
square, while points and masks refer to the original image. An odd padding puts the smaller half left / above, as there.
"""

from __future__ import annotations

import io
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from ..utils.command import InputError
from ..utils.files import escapes_folder
from .points import Point

Region = NDArray[np.bool_]  # [height, width], True inside
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
    def offset(self) -> tuple[int, int]:  # pixels of padding left of and above the image
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def pad_point(self, point: Point) -> Point:
        """Convert from the original image's frame to the square's; both normalised to [0, 1]."""
        left, top = self.offset
        return Point((point.x * self.width + left) / self.side, (point.y * self.height + top) / self.side)


def unpad_map(grid: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize one value a patch of the padded square, `[rows, columns]`, to the original image: `[height, width]`."""
    square = Square(*size)
    padded = Image.fromarray(np.asarray(grid, dtype=np.float32)).resize((square.side,) * 2, Image.Resampling.BILINEAR)
    left, top = square.offset
    return np.asarray(padded, dtype=np.float32)[top : top + square.height, left : left + square.width]


def patch_coverage(mask: NDArray[np.bool_], patches: int) -> NDArray[np.float32]:
    """Return the share of each patch, `[patches, patches]`, that a mask `[height, width]` of the original covers."""
    height, width = mask.shape
    square = Square(width, height)
    left, top = square.offset
    padded = np.zeros((square.side, square.side), dtype=np.float32)
    padded[top : top + height, left : left + width] = mask
    return np.asarray(Image.fromarray(padded).resize((patches, patches), Image.Resampling.BOX), dtype=np.float32)


# --- reading pictures and masks ------------------------------------------------------------------------------------

# What PIL raises for a file that is no image, is cut off, or is damaged: by format it is any of these.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, MemoryError, TypeError,
                LookupError, struct.error)  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no EPS, which runs another program
INSIDE = 127  # a mask's value above this lies inside the region
_FLOATING = "its pixels are floating-point numbers; store it with 8 bits a channel"
# EXIF orientation -> the transposition that turns the picture upright; those from 5 on swap width and height.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def open_image(source: str | Path | bytes, name: str = "") -> Image.Image:
    """Read an image to its end as RGB, turned upright by its EXIF orientation. InputError if missing or broken.

    Args:
        source: a path, or the file's content.
        name: what an error calls it; the path by default.
    """
    with _reading(source, f"the image {name or source!s}") as image:
        if image.mode == "F":  # of unknown range: PIL would clip it to 0 to 255 and make 0 to 1 black
            raise ValueError(_FLOATING)
        upright = _upright(image)
        if image.mode.startswith("I"):  # PIL would clip its 16 bits to 8: everything but black becomes white
            return Image.fromarray((np.asarray(upright).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
        return upright.convert("RGB")


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of an image as `open_image` returns it; only its header is read."""
    with _reading(path, f"the image {path}") as image:
        return _upright_size(image)


def is_turned(source: str | Path | bytes) -> bool:
    """Whether `open_image` turns the stored pixels."""
    with _reading(source, "the image" if isinstance(source, bytes) else f"the image {source}") as image:
        return _turn(image) is not None


def decoded_size(path: Path) -> tuple[int, int] | str:
    """Return width and height of an image that decodes to its end, or what is wrong with it.

    Faster than `open_image` for a JPEG: libjpeg still reads every coefficient, but computes a 64th of the pixels.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            size = _upright_size(image)
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            return _FLOATING if image.mode == "F" else size
    except BROKEN_IMAGE as error:
        return str(error) or type(error).__name__


def open_mask(source: str | Path | bytes, name: str = "") -> NDArray[np.uint8]:
    """Read a mask as grey values `[height, width]`, turned upright; values above `INSIDE` are the region.

    Grey values are taken as stored (16 bits and fractions are scaled to 8 bits), of colours the largest channel, and
    alpha where it varies and colour does not. InputError if missing or broken, or if colour and alpha disagree.
    """
    with _reading(source, f"the mask {name or source!s}") as image:
        upright = _upright(image)
        if image.mode.startswith(("I", "F")):  # convert("L") would clip: everything but black becomes white
            values = np.nan_to_num(np.asarray(upright, np.float64))
            largest = values.max(initial=0)
            white = 1 if image.mode == "F" and largest <= 1 else 255 if largest <= 255 else 65535
            return np.rint(values.clip(0, white) / white * 255).astype(np.uint8)
        alpha = image.mode.endswith(("A", "a")) or "transparency" in image.info
        if image.mode in ("1", "L") and not alpha:
            return np.array(upright.convert("L"), np.uint8)
        channels: NDArray[np.uint8] = np.array(upright.convert("RGBA" if alpha else "RGB"), np.uint8)
    color: NDArray[np.uint8] = channels[..., :3].max(axis=-1)
    varies = (channels != channels[:1, :1]).any(axis=(0, 1))  # for each channel, whether its pixels differ
    if not alpha or not varies[3]:
        return color
    if not varies[:3].any():
        return channels[..., 3].copy()
    if np.array_equal(color > INSIDE, channels[..., 3] > INSIDE):
        return color
    raise InputError(
        f"the mask {name or source!s} marks one region by its colours and another by its transparency (alpha): "
        "save it as a grey picture without alpha, white inside the region"
    )


class Images:
    """Finds the files that records name: in `folder`, in its `images/`, or beside it if names begin with the folder.

    A name may be written with other Unicode code points than the file's (é as one or as two, as macOS stores it).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # one instance, one cache: samples of one image mostly follow each other
        self.find = lru_cache(maxsize=4096)(self._find)

    def __reduce__(self) -> tuple[type[Images], tuple[Path]]:
        return Images, (self.folder,)  # for another process, which has a cache of its own

    def _find(self, name: str) -> Path | None:
        """Return the file, or None if there is none. A name that leaves the folder is never followed."""
        if escapes_folder(name):
            return None
        names = dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)])
        roots = [self.folder, self.folder / "images"]
        if name.partition("/")[0] == self.folder.absolute().name:
            roots.append(self.folder.parent)
        try:
            return next((path for root in roots for spelling in names if (path := root / spelling).is_file()), None)
        except (OSError, ValueError):  # longer than a name can be, or no name at all
            return None

    def path(self, name: str) -> Path:
        """Return the file; without one, the path below the folder that an error is to name. InputError: it is outside."""
        if escapes_folder(name):
            raise InputError(f"the name {name!r} leaves the image folder {self.folder}")
        return self.find(name) or self.folder / name

    def problem(self, name: str) -> str | None:
        if escapes_folder(name):
            return f"the name {name!r} leaves the image folder"
        return None if self.find(name) else f"{name} is not in the folder {self.folder}"

    def require_any(self, names: Iterable[str]) -> None:
        """Raise an InputError if none of some names is there: the folder is the wrong one."""
        names = sorted(set(names))
        problems = [problem for name in names if (problem := self.problem(name))]
        if names and len(problems) == len(names):
            raise InputError(f"image_folder: none of {len(names)} images was found, for example {problems[0]}.")


def open_region(source: str | Path | bytes, name: str = "") -> NDArray[np.bool_]:
    """Read a mask as `open_mask` does; True `[height, width]` inside the region."""
    region: NDArray[np.bool_] = open_mask(source, name) > INSIDE
    return region


def rasterize_polygon(corners: Sequence[tuple[float, float]], size: tuple[int, int]) -> Region:
    """Return the region `[height, width]` of a polygon with `corners` (x, y) in fractions of a picture of (width, height).

    A pixel is inside if its centre is, by the even-odd rule.
    """
    width, height = size
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    region: Region = np.zeros((height, width), np.bool_)
    pixels = np.array(corners, np.float64) * size
    for (x0, y0), (x1, y1) in zip(pixels, np.roll(pixels, 1, axis=0), strict=True):
        rows = np.flatnonzero((y0 > y) != (y1 > y))
        region[rows] ^= x < ((x1 - x0) * (y[rows] - y0) / (y1 - y0 if y1 != y0 else 1) + x0)[:, None]
    return region


# Pixel values of an instance map: 0 the background (floor, walls, furniture on which nothing stands), 1 the first
# surface of a room (the table of a table scene), from 2 on the objects in order, from 200 on the room's other surfaces.
BACKGROUND, FIRST_SURFACE, FIRST_OBJECT, MORE_SURFACES = 0, 1, 2, 200


def open_instances(path: str | Path) -> NDArray[Any]:
    """Read an instance map `[height, width]`, as stored."""
    with _reading(path, f"the instance map {path}") as image:
        return np.asarray(image)


def on_object(values: Any) -> Any:
    """Return where values of an instance map, or one of them, are those of objects."""
    return (values >= FIRST_OBJECT) & (values < MORE_SURFACES)


def on_surface(values: Any) -> Any:
    """Return where values of an instance map are those of surfaces, on which objects stand and free space is."""
    return (values == FIRST_SURFACE) | (values >= MORE_SURFACES)


@contextmanager
def _reading(source: str | Path | bytes, what: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{what} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{what} cannot be read: it is none of {', '.join(FORMATS)}") from None
    except BROKEN_IMAGE as error:
        raise InputError(f"{what} cannot be read: {error}") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how an image that was just opened has to be turned, None if it is upright."""
    if image.format == "TIFF":  # PIL itself turns these
        return None
    try:
        # Not image.getexif(): for a PNG that decodes all of it, to look for EXIF behind the pixels.
        return _TURNS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except BROKEN_IMAGE:  # EXIF that cannot be read turns nothing, in any viewer
        return None


def _upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    sideways = _turn(image) in [_TURNS[orientation] for orientation in (5, 6, 7, 8)]
    return (image.height, image.width) if sideways else image.size
