"""Text on a canvas: it fits, loses nothing, and uses an installed font for Chinese, Japanese and Korean."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from trace_vlm.core.reasoning import parse
from trace_vlm.drawing import canvas, contact_sheet, figures
from trace_vlm.utils.command import InputError

CUP = "\u676f\u5b50"  # "cup"


def write(text, width=290, size=20):
    page = canvas.Canvas(600, 600)
    page.write(5, 5, width, [canvas.TextBlock(text, size)])
    page.figure.canvas.draw()
    return page.figure


def widest(figure):
    return max(text.get_window_extent().width for text in figure.texts)


@pytest.mark.parametrize("width", [40, 160, 430])
def test_wrapped_text_fits_and_loses_nothing_and_too_much_ends_in_an_ellipsis(width):
    text = "A reference \u00e9\u00df object " + "verylongword" * 9 + " at (0.412, 0.533), $x^2$.\n\nSecond paragraph."
    figure = write(text, width, 8.5)
    assert "".join("".join(text.get_text() for text in figure.texts).split()) == "".join(text.split())
    assert widest(figure) <= width + 1
    lines = canvas.wrap_text(canvas.TextBlock("word " * 100_000, max_lines=3), width)
    assert len(lines) == 3 and lines[-1].endswith("\u2026")


def test_a_missing_glyph_becomes_a_box(recwarn):
    assert write("mug \u0378\U0001fae0\x00 $\\frac{").texts[0].get_text() == "mug \u25a1\u25a1\u25a1 $\\frac{"
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_figure_is_written_by_its_suffix(tmp_path):
    figure = canvas.Canvas(80, 40).figure
    for name, kind in (("a.png", "PNG"), ("new/b.jpg", "JPEG")):
        canvas.save_figure(figure, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert (image.size, image.format) == ((120, 60), kind)
    with pytest.raises(InputError, match=r"c\.png"):
        canvas.save_figure(figure, tmp_path / "a.png" / "c.png")


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Install a font with the two characters of CUP alone, each as a filled square; without it no font has them."""
    files, known = [], list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)

    def forget():
        for cached in (canvas.cjk_fonts, canvas.line_width, canvas.wrap_text):
            cached.cache_clear()

    def add(name):
        pen, names = TTGlyphPen(None), [".notdef", "first", "second"]
        pen.moveTo((50, 0))
        for corner in [(50, 900), (950, 900), (950, 0)]:
            pen.lineTo(corner)
        pen.closePath()
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(names)
        builder.setupCharacterMap(dict(zip(map(ord, CUP), names[1:], strict=True)))
        builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
        builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
        builder.setupHorizontalHeader(ascent=900, descent=-100)
        builder.setupNameTable({"familyName": name, "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        files.append(str(tmp_path / f"{name}.ttf"))
        builder.save(files[-1])
        forget()

    forget()
    yield add
    font_manager.fontManager.ttflist[:] = known
    forget()


def test_an_installed_font_is_used_for_what_dejavu_lacks(install, recwarn, caplog):
    assert write(f"A {CUP}").texts[0].get_text() == "A \u25a1\u25a1"
    install("Other")
    install("NotoSansCJK-Regular")
    figure = write(f"A {CUP}\u6f22")
    assert figure.texts[0].get_text() == f"A {CUP}\u25a1"  # no font has the third
    assert figure.texts[0].get_fontfamily() == [canvas.BASE_FONT, "NotoSansCJK-Regular"]
    pictures = (np.asarray(canvas.figure_to_image(one).convert("L")) for one in (figure, write("A \u25a1" * 3)))
    dark, boxes = ((picture < 90).sum() for picture in pictures)
    assert dark > boxes + 250  # the squares are filled
    panels = [figures.AnswerPanel(name, parse("(0.5, 0.5)")) for name in (f"model {CUP}", "b")]
    shown = figures.draw_comparison(Image.new("RGB", (40, 30)), f"{CUP}?", panels).texts
    assert {f"{CUP}?", f"model {CUP}"} <= {text.get_text() for text in shown}
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)] and not caplog.messages


def test_chinese_is_measured_and_wrapped_and_drawn_on_the_contact_sheet(install):
    install("wqy-zenhei")
    figure = write(CUP * 50, 200, 10)
    assert "".join(text.get_text() for text in figure.texts) == CUP * 50 and len(figure.texts) > 5
    assert 150 < widest(figure) <= 201
    assert canvas.pil_font("A mug", 14).getlength("A mug") == ImageFont.load_default(14).getlength("A mug")
    picture = Image.new("RGB", (contact_sheet.SIDE, 40), "white")
    draw, font = ImageDraw.Draw(picture), canvas.pil_font(CUP * 30, 14)
    lines = contact_sheet.wrap_caption(CUP * 30, draw, font)
    assert "".join(lines) == CUP * 30 and all(draw.textlength(line, font) <= contact_sheet.SIDE for line in lines)
    draw.text((0, 0), lines[0], "black", font)
    assert (np.asarray(picture)[..., 0] < 90).sum() > 1000
