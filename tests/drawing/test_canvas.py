"""Text on a canvas: it fits, loses nothing, and uses an installed font for Chinese, Japanese and Korean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from trace_vlm.core.reasoning import parse
from trace_vlm.data.scenes import dataset_files
from trace_vlm.drawing import canvas, figures
from trace_vlm.utils.command import InputError

CUP = "\u676f\u5b50"  # "cup"
REAL = [path for path in font_manager.findSystemFonts() if Path(path).name.startswith(canvas.CJK)]


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 160, 430])
def test_wrapped_text_fits_and_loses_nothing(width: float) -> None:
    text = "A reference \u00e9\u00df object " + "verylongword" * 9 + " at (0.412, 0.533), $x^2$.\n\nSecond paragraph."
    lines = canvas.wrap_text(canvas.TextBlock(text), width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    page = canvas.Canvas(600, 600)
    for line in lines:
        page.figure.text(0, 0, line, fontsize=8.5, family="DejaVu Sans", parse_math=False)
    page.figure.canvas.draw()
    assert max(text.get_window_extent().width for text in page.figure.texts) <= width + 1


def test_too_much_text_ends_in_an_ellipsis() -> None:
    lines = canvas.wrap_text(canvas.TextBlock("word " * 100_000, max_lines=3), 200)
    assert len(lines) == 3 and lines[-1].endswith("\u2026")


def test_a_missing_glyph_becomes_a_box(recwarn: pytest.WarningsRecorder) -> None:
    page = canvas.Canvas(300, 60)
    page.write(0, 0, 300, [canvas.TextBlock("mug \u0378\U0001fae0\x00 $\\frac{")])
    page.figure.canvas.draw()
    assert page.figure.texts[0].get_text() == "mug \u25a1\u25a1\u25a1 $\\frac{"
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_figure_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    figure = canvas.Canvas(80, 40).figure
    for name in ("a.png", "new/b.jpg"):
        canvas.save_figure(figure, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.size == (120, 60)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"c\.png"):
        canvas.save_figure(figure, tmp_path / "file" / "c.png")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "b.jpg", "file", "new"]


# --- fonts ---------------------------------------------------------------------------------------------------------


def make_font(path: Path, family: str) -> str:
    """A font with the two characters of CUP alone, each as a filled square."""
    pen = TTGlyphPen(None)
    for place, corner in enumerate([(50, 0), (50, 900), (950, 900), (950, 0)]):
        (pen.lineTo if place else pen.moveTo)(corner)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", "first", "second"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): name for character, name in zip(CUP, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The font files of the system, for a test to fill."""
    files: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    known = list(font_manager.fontManager.ttflist)
    forget_fonts()
    yield files
    font_manager.fontManager.ttflist[:] = known
    forget_fonts()


def forget_fonts() -> None:
    for cached in (canvas.cjk_fonts, canvas.line_width, canvas.wrap_text):
        cached.cache_clear()


def dark_pixels(page: canvas.Canvas) -> int:
    return int((np.asarray(canvas.figure_to_image(page.figure).convert("L")) < 90).sum())


def written(text: str) -> canvas.Canvas:
    page = canvas.Canvas(300, 90)
    page.write(5, 5, 290, [canvas.TextBlock(text, 20)])
    page.write(5, 48, 290, [canvas.TextBlock(text, 20, bold=True, color="white")])
    return page


def test_an_installed_font_is_used_for_what_dejavu_lacks(
    system: list[str], tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    assert written(f"A {CUP}").figure.texts[0].get_text() == "A \u25a1\u25a1"
    forget_fonts()
    system += [make_font(tmp_path / f"{name}.ttf", name) for name in ("NotoSansCJK-Regular", "Other")]
    page = written(f"A {CUP}\u6f22")
    text = page.figure.texts[0]
    assert text.get_text() == f"A {CUP}\u25a1"  # no font has the third
    assert text.get_fontfamily() == [canvas.BASE_FONT, "NotoSansCJK-Regular"]
    assert dark_pixels(page) > dark_pixels(written("A \u25a1\u25a1\u25a1")) + 500  # the squares are filled
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)] and not caplog.messages
    panels = [figures.AnswerPanel(f"model {CUP}", parse("(0.5, 0.5)")), figures.AnswerPanel("b", parse("(0.5, 0.5)"))]
    figure = figures.draw_comparison(Image.new("RGB", (40, 30)), f"{CUP}?", panels)
    shown = " ".join(text.get_text() for text in figure.texts)
    assert f"{CUP}?" in shown and f"model {CUP}" in shown and "\u25a1" not in shown


def test_chinese_is_measured_and_wrapped(system: list[str], tmp_path: Path) -> None:
    system.append(make_font(tmp_path / "wqy-zenhei.ttf", "Fake Zen Hei"))
    lines = canvas.wrap_text(canvas.TextBlock(CUP * 50, 10), 200)
    assert "".join(lines) == CUP * 50 and len(lines) > 5
    page = canvas.Canvas(600, 600)
    page.write(0, 0, 200, [canvas.TextBlock(CUP * 50, 10)])
    page.figure.canvas.draw()
    assert 150 < max(text.get_window_extent().width for text in page.figure.texts) <= 201


def test_pillow_gets_a_font_that_has_the_characters(system: list[str], tmp_path: Path) -> None:
    system.append(make_font(tmp_path / "NotoSansCJK-Regular.ttf", "A Fake CJK"))
    assert canvas.font_families("A mug, caf\u00e9, \u03b1\n") == [canvas.BASE_FONT]
    default: Any = ImageFont.load_default(14)
    assert canvas.pil_font("A mug", 14).getlength("A mug") == default.getlength("A mug")
    assert canvas.pil_font(CUP, 14).getlength(CUP) == 28


def test_the_contact_sheet_draws_and_breaks_chinese(system: list[str], tmp_path: Path) -> None:
    system.append(make_font(tmp_path / "NotoSansCJK-Regular.ttf", "A Fake CJK"))
    picture = Image.new("RGB", (dataset_files.TILE, 40), "white")
    draw, font = ImageDraw.Draw(picture), canvas.pil_font(CUP * 30, 14)
    lines = dataset_files.wrap_caption(CUP * 30, draw, font)
    assert "".join(lines) == CUP * 30 and all(draw.textlength(line, font) <= dataset_files.TILE for line in lines)
    draw.text((0, 0), lines[0], "black", font)
    assert (np.asarray(picture)[..., 0] < 90).sum() > 1000


@pytest.mark.skipif(not REAL, reason="no font with Chinese is installed (Debian: apt-get install fonts-wqy-zenhei)")
def test_a_real_font_draws_all_three_scripts() -> None:
    forget_fonts()
    text = "\u676f\u5b50\u306e\u5de6\uceb5"
    assert written(text).figure.texts[0].get_text() == text
    assert len(canvas.font_families(text)) > 1
