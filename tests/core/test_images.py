"""The padded square and its inverse; images and masks of every kind, upright, broken or of 16 bits."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from trace_vlm.core import images
from trace_vlm.core.images import INSIDE, Images, Square, image_size, open_image, open_mask
from trace_vlm.core.points import Point
from trace_vlm.utils.command import InputError

ORIGINAL = Path(__file__).parents[1] / "data" / "llava_original"
sides = st.integers(1, 700)
shares = st.floats(0, 1, allow_nan=False)


@given(sides, sides, shares, shares)
def test_a_point_keeps_its_pixel_in_the_padded_square(width, height, x, y):
    square = Square(width, height)
    padded, (left, top) = square.pad_point(Point(x, y)), square.offset
    assert 0 <= padded.x <= 1 and 0 <= padded.y <= 1
    pixel = padded.x * square.side - left, padded.y * square.side - top
    assert pixel == pytest.approx((x * width, y * height), abs=1e-6)


@pytest.mark.parametrize("size", [(64, 48), (44, 61), (50, 50), (33, 200)])
def test_a_hot_patch_lands_on_its_pixels(size):
    square, patches = Square(*size), 8
    target = square.pad_point(Point(0.5, 0.5))
    grid = np.zeros((patches, patches))
    row, column = int(target.y * patches), int(target.x * patches)
    grid[row, column] = 1.0
    heat = images.unpad_map(grid, size)
    assert heat.shape == (size[1], size[0])
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    found = square.pad_point(Point((x + 0.5) / size[0], (y + 0.5) / size[1]))
    assert (int(found.y * patches), int(found.x * patches)) == (row, column)


def test_an_odd_padding_puts_the_smaller_half_first_and_coverage_is_the_share_of_a_patch():
    assert (Square(4, 7).offset, Square(7, 4).offset, Square(3, 3).offset) == ((1, 0), (0, 1), (0, 0))
    left = np.array([[True, True, False, False]] * 2)  # of a 4 x 2 image; the square adds a row above and below
    assert images.patch_coverage(left, 2).tolist() == [[0.5, 0.0], [0.5, 0.0]]


@pytest.mark.parametrize("name", ["wide", "tall", "square"])
def test_pixels_equal_the_original_bit_for_bit(name):
    from transformers import AutoTokenizer, CLIPVisionConfig

    from trace_vlm.model.build import build_processor

    vision = CLIPVisionConfig(image_size=56, patch_size=14)
    made = build_processor(AutoTokenizer.from_pretrained(ORIGINAL / "tokenizer"), vision).image_processor
    pixels = made([open_image(ORIGINAL / "images" / f"{name}.png")], return_tensors="np")["pixel_values"]
    assert np.array_equal(pixels, np.load(ORIGINAL / "pixels.npz")[f"pixel_values__{name}"])


@pytest.mark.parametrize("read", [open_image, open_mask, image_size])
def test_missing_and_broken_images_are_named(tmp_path, read):
    content = (ORIGINAL / "images" / "wide.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:300])
    # the type of the chunk behind the header: a SyntaxError of PIL
    (tmp_path / "damaged.png").write_bytes(content[:37] + b"\x00\x01\x02\x03" + content[41:])
    for name in ("none.png", "damaged.png", "cut.png")[: 2 if read is image_size else 3]:
        with pytest.raises(InputError, match=re.escape(name)):
            read(tmp_path / name)


# How each orientation stores it: what has to be done to the upright picture.
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.T,
    6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a, -1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_orientation_is_turned_upright_in_images_sizes_and_masks(tmp_path, orientation, suffix):
    upright = np.array([[40, 80], [120, 160], [200, 240]], np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    path = tmp_path / f"a.{suffix}"
    stored.convert("RGB").save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(np.asarray(open_image(path))[..., 0], upright)
    assert np.array_equal(open_mask(path), upright)
    assert image_size(path) == (2, 3) == images.decoded_size(path)
    assert images.is_turned(path) == (orientation != 1 and suffix != "tif")


def test_damaged_exif_turns_nothing(tmp_path):
    path = tmp_path / "a.jpg"
    for exif in (b"Exif\x00\x00MM\x00*", b"Exif\x00\x00nonsense" * 9, b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff"):
        Image.new("RGB", (4, 2)).save(path, exif=exif)
        assert open_image(path).size == image_size(path) == images.decoded_size(path) == (4, 2)


LEFT = np.array([[True, True, False, False]] * 3)


VOC = Image.fromarray(LEFT.astype(np.uint8))
VOC.putpalette([0, 0, 0, 128, 0, 0])  # its first class is dark red


def layers(*bands):
    """A picture of 4 x 3 pixels whose bands are values, or regions that are 255 inside."""
    arrays = [np.where(band, 255, 0) if isinstance(band, np.ndarray) else np.full((3, 4), band) for band in bands]
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(bands)]
    return Image.merge(mode, [Image.fromarray(array.astype(np.uint8)) for array in arrays])


@pytest.mark.parametrize("picture", [
    layers(LEFT), layers(LEFT).convert("1"), layers(LEFT).convert("P"), layers(255, LEFT), layers(0, LEFT),
    layers(LEFT, 255), layers(LEFT, LEFT), layers(LEFT, 0, 0), layers(0, 0, LEFT), layers(0, 0, LEFT, 255),
    layers(255, 255, 255, LEFT), layers(255, 0, 0, LEFT), layers(LEFT, LEFT, LEFT, LEFT),
    Image.fromarray(np.where(LEFT, 40000, 1000).astype(np.uint16)),
    Image.fromarray(np.where(LEFT, 0.9, 0.1).astype(np.float32)), VOC,
], ids=lambda picture: f"{picture.mode}-{picture.getextrema()}")  # fmt: skip
def test_one_reader_takes_every_kind_of_mask(tmp_path, picture):
    path = tmp_path / ("a.tif" if picture.mode == "F" else "a.png")
    picture.save(path)
    for source in (path, path.read_bytes()):
        assert np.array_equal(open_mask(source) > INSIDE, LEFT)


@pytest.mark.parametrize("kind, values", [
    (np.uint8, [0, 100, 127, 128, 200, 255]), (np.uint16, [0, 256, 32767, 32768, 40000, 65535]),
    (np.int32, [0, 256, 32767, 32768, 40000, 65535]), (np.float32, [0, 0.1, 0.49, 0.51, 0.8, 1]),
    (np.uint16, [0, 100, 127, 128, 200, 255]), (np.float32, [0, 100, 127, 128, 200, 255]),  # eight bits in wider ones
])  # fmt: skip
def test_a_mask_is_cut_at_half_of_its_range(tmp_path, kind, values):
    Image.fromarray(np.array([values] * 4, kind)).save(tmp_path / "a.tif")
    assert (open_mask(tmp_path / "a.tif") > INSIDE).tolist() == [[False] * 3 + [True] * 3] * 4


def test_grey_values_stay_as_stored_and_sixteen_bits_are_scaled(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "deep.png"))[..., 1], values)
    for picture in (Image.fromarray(values), Image.fromarray(values).convert("RGB")):
        picture.save(tmp_path / "a.png")
        assert np.array_equal(open_mask(tmp_path / "a.png"), values)
    Image.fromarray(values).save(tmp_path / "a.jpg")
    assert np.array_equal(open_mask(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))
    layers(LEFT, ~LEFT).save(tmp_path / "a.png")  # colours and alpha that disagree
    with pytest.raises(InputError, match=r"a\.png"):
        open_mask(tmp_path / "a.png")


def test_a_file_beside_the_folder_is_found_only_by_a_name_that_begins_with_the_folder(tmp_path):
    for name in ("photos/in.png", "photos/images/sub.png", "beside.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    images = Images(tmp_path / "photos")
    names = ["in.png", "sub.png", "images/sub.png", "photos/in.png", "beside.png", "../beside.png"]
    assert [images.find(name) is not None for name in names] == [True, True, True, True, False, False]
