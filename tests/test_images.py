"""The padded square and its inverse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trace_vlm.command import InputError
from trace_vlm.images import PAD_COLOR, Square, open_image, pad_to_square, patch_coverage, unpad_map
from trace_vlm.points import Point

ORIGINAL = Path(__file__).parent / "data" / "llava_original"
sides = st.integers(1, 700)
shares = st.floats(0, 1, allow_nan=False)


@given(sides, sides, shares, shares)
def test_unpad_inverts_pad(width, height, x, y):
    square = Square(width, height)
    padded = square.pad_point(Point(x, y))
    assert 0 <= padded.x <= 1 and 0 <= padded.y <= 1
    back = square.unpad_point(padded)
    assert (back.x, back.y) == pytest.approx((x, y), abs=1e-9)


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_padded_point_hits_the_padded_picture_where_the_original_was(width, height):
    image = Image.new("RGB", (width, height), (0, 0, 0))
    spot = (width // 2, height // 2)
    image.putpixel(spot, (255, 255, 255))
    padded, square = pad_to_square(image), Square(width, height)
    there = square.pad_point(Point((spot[0] + 0.5) / width, (spot[1] + 0.5) / height))
    assert padded.getpixel((int(there.x * square.side), int(there.y * square.side))) == (255, 255, 255)


def test_an_odd_difference_puts_the_smaller_half_first_and_fills_with_the_mean():
    padded = pad_to_square(Image.new("RGB", (4, 7), (1, 2, 3)))
    assert [padded.getpixel((x, 0)) == PAD_COLOR for x in range(7)] == [True, False, False, False, False, True, True]


@pytest.mark.parametrize("size", [(64, 48), (44, 61), (50, 50), (33, 200)])
def test_a_hot_patch_lands_on_its_pixels(size):
    square, patches = Square(*size), 8
    target = square.pad_point(Point(0.5, 0.5))
    grid = np.zeros((patches, patches))
    row, column = int(target.y * patches), int(target.x * patches)
    grid[row, column] = 1.0
    heat = unpad_map(grid, size)
    assert heat.shape == (size[1], size[0])
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    found = square.pad_point(Point((x + 0.5) / size[0], (y + 0.5) / size[1]))
    assert (int(found.y * patches), int(found.x * patches)) == (row, column)


def test_coverage_counts_the_share_of_each_patch():
    mask = np.zeros((2, 4), dtype=bool)
    mask[:, :2] = True  # the left half of a 4 x 2 image; the square adds a row above and below
    assert patch_coverage(mask, 2).tolist() == [[0.5, 0.0], [0.5, 0.0]]


@pytest.mark.parametrize("name", ["wide", "tall", "square"])
def test_pixels_equal_the_original_bit_for_bit(name):
    from transformers import AutoTokenizer, CLIPVisionConfig

    from trace_vlm.model.build import processor

    vision = CLIPVisionConfig(image_size=56, patch_size=14)
    made = processor(AutoTokenizer.from_pretrained(ORIGINAL / "tokenizer"), vision).image_processor
    pixels = made([open_image(ORIGINAL / "images" / f"{name}.png")], return_tensors="np")["pixel_values"]
    recorded = np.load(ORIGINAL / "pixels.npz")[f"pixel_values__{name}"]
    assert np.array_equal(pixels, recorded)


def test_broken_images_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.png does not exist"):
        open_image(tmp_path / "none.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes((ORIGINAL / "images" / "wide.png").read_bytes()[:300])
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        open_image(broken)


def test_sixteen_bits_are_scaled_and_damage_is_one_sentence(tmp_path):
    grey = np.arange(0, 250, dtype=np.uint16).reshape(10, 25)
    Image.fromarray(grey * 257).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "deep.png"))[..., 1], grey)
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "whole.png")
    content = bytearray((tmp_path / "whole.png").read_bytes())
    content[37:41] = b"\x00\x01\x02\x03"  # the type of the chunk behind the header: a SyntaxError of PIL
    (tmp_path / "damaged.png").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"damaged\.png cannot be read"):
        open_image(tmp_path / "damaged.png")
