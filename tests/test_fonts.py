"""Text in Chinese, Japanese or Korean: drawn where the system has a font for it, and a box where it has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from trace_vlm.core.reasoning import parse
from trace_vlm.data.scenes import dataset_files
from trace_vlm.drawing import canvas, figures, fonts

CUP = "\u676f\u5b50"  # "cup"
REAL = [path for path in font_manager.findSystemFonts() if Path(path).name.startswith(fonts.CJK)]


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
    forget()
    yield files
    font_manager.fontManager.ttflist[:] = known
    forget()


def forget() -> None:
    fonts._fallbacks.cache_clear()
    for one in (canvas._wrapped, canvas._length):
        one.cache_clear()


def dark(figure: Any) -> int:
    """How many pixels of a figure are black."""
    return int((np.asarray(canvas.as_image(figure).convert("L")) < 90).sum())


def written(text: str) -> canvas.Page:
    page = canvas.Page(300, 90)
    page.write(5, 5, 290, [canvas.Block(text, 20)])
    page.write(5, 48, 290, [canvas.Block(text, 20, bold=True, color="white")])
    return page


def test_the_systems_font_is_used_for_what_dejavu_lacks(
    system: list[str], tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    assert written(f"A {CUP}").figure.texts[0].get_text() == "A \u25a1\u25a1"
    forget()
    system += [
        make_font(tmp_path / "NotoSansCJK-Regular.ttf", "A Fake CJK"),
        make_font(tmp_path / "Other.ttf", "Other"),
    ]
    page = written(f"A {CUP}\u6f22")
    text = page.figure.texts[0]
    assert text.get_text() == f"A {CUP}\u25a1"  # of the third no font knows
    assert text.get_fontfamily() == [fonts.BASE, "A Fake CJK"]
    assert dark(page.figure) > dark(written("A \u25a1\u25a1\u25a1").figure) + 500  # the squares are filled
    assert not [one for one in recwarn if "Glyph" in str(one.message)] and not caplog.messages


def test_chinese_is_measured_and_wrapped(system: list[str], tmp_path: Path) -> None:
    system.append(make_font(tmp_path / "wqy-zenhei.ttf", "Fake Zen Hei"))
    lines = canvas.wrapped(canvas.Block(CUP * 50, 10), 200)
    assert "".join(lines) == CUP * 50 and len(lines) > 5
    page = canvas.Page(600, 600)
    page.write(0, 0, 200, [canvas.Block(CUP * 50, 10)])
    page.figure.canvas.draw()
    assert 150 < max(text.get_window_extent().width for text in page.figure.texts) <= 201


def test_latin_text_is_drawn_as_before(system: list[str], tmp_path: Path) -> None:
    system.append(make_font(tmp_path / "NotoSansCJK-Regular.ttf", "A Fake CJK"))
    assert fonts.families("A mug, caf\u00e9, \u03b1\n") == [fonts.BASE]
    assert fonts.pil_font("A mug", 14).getlength("A mug") == dataset_files.pil_font("", 14).getlength("A mug")


def test_a_comparison_in_chinese_has_no_boxes(system: list[str], tmp_path: Path) -> None:
    system.append(make_font(tmp_path / "NotoSansCJK-Regular.ttf", "A Fake CJK"))
    panels = [figures.Panel(f"model {CUP}", parse("(0.5, 0.5)")), figures.Panel("b", parse("(0.5, 0.5)"))]
    figure = figures.comparison(Image.new("RGB", (40, 30)), f"{CUP}?", panels)
    shown = " ".join(text.get_text() for text in figure.texts)
    assert f"{CUP}?" in shown and f"model {CUP}" in shown and "\u25a1" not in shown


def test_the_contact_sheet_draws_and_breaks_chinese(system: list[str], tmp_path: Path) -> None:
    from PIL import ImageDraw

    system.append(make_font(tmp_path / "NotoSansCJK-Regular.ttf", "A Fake CJK"))
    picture = Image.new("RGB", (dataset_files.TILE, 40), "white")
    draw, font = ImageDraw.Draw(picture), fonts.pil_font(CUP * 30, 14)
    lines = dataset_files.wrap_caption(CUP * 30, draw, font)
    assert "".join(lines) == CUP * 30 and all(draw.textlength(line, font) <= dataset_files.TILE for line in lines)
    draw.text((0, 0), lines[0], "black", font)
    assert (np.asarray(picture)[..., 0] < 90).sum() > 1000


@pytest.mark.skipif(not REAL, reason="no font with Chinese is installed (Debian: apt-get install fonts-wqy-zenhei)")
def test_an_installed_font_draws_all_three_scripts() -> None:
    forget()
    text = "\u676f\u5b50\u306e\u5de6\uceb5"
    page = written(text)
    assert page.figure.texts[0].get_text() == text
    assert len(fonts.families(text)) > 1
