"""The demo in Chromium: it answers, its slider changes the picture, it asks nobody else, and no answer acts on it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forced_answers import saying

from trace_vlm.attention.steps import STEP_TITLES
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import render

pytestmark = pytest.mark.slow  # gradio takes its time to start

EVIL = "<img src=x onerror=\"document.title = 'harmed'\"><script>document.title = 'harmed'</script>"
STEPS = {"reference": "The mug.", "target": "Left of it.", "subtype": f"Free space. {EVIL}", "output": "One point."}
TEXT = render(STEPS, [Point(0.25, 0.5)])


@pytest.fixture(scope="module")
def address(nano: Any) -> Iterator[str]:
    pytest.importorskip("gradio", reason="pip install gradio to try the demo")
    from trace_vlm.demo import app as demo
    from trace_vlm.demo.session import Models
    from trace_vlm.inference.predictor import Predictor

    with socket.socket() as free:
        free.bind((demo.HOST, 0))
        port = free.getsockname()[1]
    with saying(nano, TEXT), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Predictor, "load", classmethod(lambda cls, *_: cls(nano)))
        app = demo.launch(Models({"nano": "nano-random"}), port, wait=False)
        yield f"http://{demo.HOST}:{port}/"
        app.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    found = browser.new_page(viewport={"width": 1400, "height": 1000})
    elsewhere: list[str] = []
    found.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:", "blob:")) else elsewhere.append(request.url),
    )
    found.goto(address)
    found.wait_for_selector("#ask", timeout=60_000)
    yield found
    assert elsewhere == []
    found.close()


def wait(page: Any, what: str) -> None:
    page.wait_for_function(what, timeout=60_000)


def test_a_question_is_answered_and_the_slider_shows_each_step(page: Any, tmp_path: Path) -> None:
    page.locator("table tr.tr-body").first.click()
    wait(page, "document.querySelector('#instruction textarea').value.length > 5")
    page.locator("#ask").click()
    wait(page, "document.querySelector('#text-0').innerText.includes('5. Final answer')")
    wait(page, "document.querySelector('#words-0 textarea').value.length > 5")
    told = page.locator("#text-0").inner_text()
    assert all(text in told for text in STEPS.values()) and "[(0.250, 0.500)]" in told
    page.locator("#text-0 summary").click()
    assert page.locator("#text-0 pre").inner_text() == TEXT
    assert "0.250" in page.locator("#points-0").inner_text() and "%" in page.locator("#points-0").inner_text()
    shown = []
    for step in (0, 2, 3):
        page.locator("#step-0 input[type=number]").fill(str(step))
        page.locator("#step-0 input[type=number]").press("Enter")
        if step:
            title = [*STEP_TITLES.values()][step - 1]
            wait(page, f"document.querySelector('#words-0 textarea').value.includes({title!r})")
        page.wait_for_timeout(300)
        shown.append(page.locator("#shown-0 img").get_attribute("src"))
        marked = "return [...document.querySelectorAll('#text-0 [data-step]')].filter(one => one.style.background)"
        keys = page.evaluate(f"() => {{ {marked}.map(one => one.dataset.step) }}")
        assert keys == ([[*STEPS][step - 1]] if step else [])
    assert len(set(shown)) == 3
    assert page.title() == "TRACE"
    with page.expect_download() as download:
        page.locator("#download-0").click()
    download.value.save_as(tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["text"] == TEXT and answer["points"][0]["x"] == 0.25 and len(answer["attention"]) == 5


def test_a_broken_image_gets_a_message(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.locator("#picture input[type=file]").set_input_files(str(tmp_path / "broken.png"))
    page.locator("#instruction textarea").fill("Point at the mug.")
    page.wait_for_timeout(1000)
    page.locator("#ask").click()
    page.get_by_text("no image that can be read").first.wait_for(timeout=30_000)


def test_without_an_image_a_message_says_so(page: Any) -> None:
    page.locator("#instruction textarea").fill("Point at the mug.")
    page.locator("#ask").click()
    page.get_by_text("An image is missing").first.wait_for(timeout=30_000)
