"""The demo in Chromium: it answers, its slider changes the picture, it asks nobody else, and no answer acts on it."""

import json
import socket

import pytest
from forced_answers import STEPS, saying

from trace_vlm.attention.steps import STEP_TITLES
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import render
from trace_vlm.demo import app as demo
from trace_vlm.demo.session import Models
from trace_vlm.inference.predictor import Predictor

pytestmark = pytest.mark.slow  # gradio takes its time to start

EVIL = "<img src=x onerror=\"document.title = 'harmed'\"><script>document.title = 'harmed'</script>"
ANSWER = {**STEPS, "subtype": f"Free space. {EVIL}"}
TEXT = render(ANSWER, [Point(0.25, 0.5)])


@pytest.fixture(scope="module")
def address(nano):
    pytest.importorskip("gradio", reason="pip install gradio to try the demo")
    with socket.socket() as free:
        free.bind((demo.HOST, 0))
        port = free.getsockname()[1]
    with saying(nano, TEXT), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Predictor, "load", classmethod(lambda cls, *_: cls(nano)))
        app = demo.launch(Models({"nano": "nano-random"}), port, wait=False)
        yield f"http://{demo.HOST}:{port}/"
        app.close()


@pytest.fixture
def page(browser, address):
    page, elsewhere = browser.new_page(viewport={"width": 1400, "height": 1000}), []
    allowed = (address, "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(allowed) or elsewhere.append(request.url))
    page.goto(address)
    page.wait_for_selector("#ask", timeout=60_000)
    yield page
    assert elsewhere == []
    page.close()


def test_a_question_is_answered_and_the_slider_shows_each_step(page, tmp_path):
    def wait(condition):
        page.wait_for_function(condition, timeout=60_000)

    page.locator("table tr.tr-body").filter(has=page.locator("img")).first.click()
    wait("document.querySelector('#instruction textarea').value.length > 5")
    page.locator("#ask").click()
    wait("document.querySelector('#text-0').innerText.includes('5. Final answer')")
    wait("document.querySelector('#words-0 textarea').value.length > 5")
    shown = page.locator("#text-0").inner_text()
    assert all(text in shown for text in ANSWER.values()) and "[(0.250, 0.500)]" in shown
    page.locator("#text-0 summary").click()
    assert page.locator("#text-0 pre").inner_text() == TEXT
    assert all(text in page.locator("#points-0").inner_text() for text in ("0.250", "%"))
    pictures, slider = set(), page.locator("#step-0 input[type=number]")
    for step in (0, 2, 3):
        slider.fill(str(step))
        slider.press("Enter")
        if step:
            title = [*STEP_TITLES.values()][step - 1]
            wait(f"document.querySelector('#words-0 textarea').value.includes({title!r})")
        page.wait_for_timeout(300)
        pictures.add(page.locator("#shown-0 img").get_attribute("src"))
        marked = "all => all.filter(one => one.style.background).map(one => one.dataset.step)"
        assert page.locator("#text-0 [data-step]").evaluate_all(marked) == ([[*STEPS][step - 1]] if step else [])
    assert len(pictures) == 3 and page.title() == "TRACE"
    with page.expect_download() as download:
        page.locator("#download-0").click()
    download.value.save_as(tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["text"] == TEXT and answer["points"][0]["x"] == 0.25 and len(answer["attention"]) == 5


@pytest.mark.parametrize("file, message", [("broken.png", "no image that can be read"), ("", "An image is missing")])
def test_a_broken_or_missing_image_gets_a_message(page, tmp_path, file, message):
    if file:
        (tmp_path / file).write_bytes(b"no image")
        page.locator("#picture input[type=file]").set_input_files(str(tmp_path / file))
    page.locator("#instruction textarea").fill("Point at the mug.")
    page.wait_for_timeout(1000)
    page.locator("#ask").click()
    page.get_by_text(message).first.wait_for(timeout=30_000)


def test_on_a_phone_the_answer_stands_below_the_button_and_the_second_model_is_folded(page):
    page.set_viewport_size({"width": 390, "height": 800})
    asked, shown, model = (page.locator(name).bounding_box() for name in ("#ask", "#shown-0", "#model-0"))
    assert 0 < shown["y"] - (asked["y"] + asked["height"]) < 40 and model["y"] > shown["y"] + shown["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#second").is_visible() and not page.locator("#model-1").is_visible()


def test_the_api_has_names(page, address):
    (ask,) = page.request.get(f"{address}gradio_api/info").json()["named_endpoints"].values()
    names = [parameter["parameter_name"] for parameter in ask["parameters"]]
    assert names == ["image", "instruction", "reasoning", "num_points", "temperature", "seed", "model"]
