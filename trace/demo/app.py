"""The demo's page: ask a model in the browser, read its reasoning as it comes, see its points and attention.

    trace-vlm demo --model trace=output/trace-13b --model robopoint=checkpoints/robopoint

The page is served on 127.0.0.1 unless --host says otherwise, loads nothing from elsewhere (a content security policy
tells the browser so), and sends no usage numbers. Its API is /ask, documented at /?view=api. Needs the extra `demo`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.images import BROKEN_IMAGE
from ..utils.command import InputError, Parser, install_hint, run

if TYPE_CHECKING:
    from .session import Models

HOST = "127.0.0.1"
UPLOAD_LIMIT = "20mb"
SAMPLES = Path(__file__).parents[1] / "assets" / "demo"
NONE = "(none)"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Ask a model in the browser; nothing leaves this machine.", examples=__doc__)
    parser.add_argument("--model", action="append", default=[], metavar="[NAME=]FOLDER",
                        help="a model for the menu; may be repeated (the bundled models follow)")  # fmt: skip
    parser.add_argument("--host", default=HOST, help="address to listen on; everybody who reaches it may ask")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="torch device (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="type of the weights (default: float32 on a CPU, as stored on a GPU)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    arguments = parser.parse_args(argv)

    from .session import Models, model_paths

    models = Models(model_paths(arguments.model), arguments.device, arguments.dtype)
    if not 0 < arguments.port < 65536:
        raise InputError(f"--port has to lie between 1 and 65535, not {arguments.port}")
    launch(models, arguments.port, arguments.open, host=arguments.host)
    return 0


def launch(models: Models, port: int, browser: bool = False, wait: bool = True, host: str = HOST) -> Any:
    """Serve the page; return the app, at once when `wait` is False. InputError: gradio is missing, the port is taken."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio as gr
        from starlette.middleware import Middleware
    except ModuleNotFoundError as error:
        raise InputError(f"the demo needs gradio ({error}): {install_hint('demo')}") from None
    app = build(models)
    local = ["system-ui", "sans-serif"]  # gradio's own themes load their fonts from the network
    try:
        app.queue(default_concurrency_limit=1).launch(
            server_name=host, server_port=port, share=False, inbrowser=browser, prevent_thread_lock=True,
            quiet=True,  # its own words advise a public link
            max_file_size=UPLOAD_LIMIT, allowed_paths=[str(SAMPLES)], footer_links=[], ssr_mode=False, pwa=False,
            mcp_server=False, theme=gr.themes.Default(font=local, font_mono=["ui-monospace", "monospace"]),
            app_kwargs={"middleware": [Middleware(SecurityPolicy)], "docs_url": None, "redoc_url": None},
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be used ({error}). Give another --port or --host") from None
    if wait:
        print(f"open http://{host}:{port} (Ctrl-C ends it)", flush=True)
        app.block_thread()
    return app


class SecurityPolicy:
    """Add the content security policy to every answer of the server."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"content-security-policy", POLICY.encode()))
            await send(message)

        await self.app(scope, receive, with_policy)


def build(models: Models) -> Any:
    """Build the page as a gradio app."""
    import gradio as gr

    from ..model.record import reasons

    names = list(models.paths)
    with gr.Blocks(title="TRACE", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as app:
        gr.Markdown("# TRACE\nA picture and an instruction; the model reasons in words, then points.")
        with gr.Row():
            # On a narrow screen the columns stand below each other: the question, the answer, everything else.
            with gr.Column(scale=1, min_width=260):
                picture = gr.Image(type="filepath", image_mode=None, label="Image", sources=["upload", "clipboard"],
                                   buttons=[], elem_id="picture", height=300)  # fmt: skip
                # An unreadable file is named; gradio's own shows a bare "Error". The method of this one component is
                # replaced, because gradio writes a stub file beside the source of every sub-class.
                picture.preprocess = partial(_read_picture, gr, picture.preprocess)
                instruction = gr.Textbox(label="Instruction", lines=2, placeholder="Point to ...",
                                         elem_id="instruction")  # fmt: skip
                asked = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=1, min_width=300):
                first = _side(gr, 0)
            with gr.Column(scale=1, min_width=300):
                first["model"] = gr.Dropdown(names, value=names[0], label="Model", elem_id="model-0")
                with gr.Accordion("A second model beside it", open=False, elem_id="second"):
                    other = gr.Dropdown([NONE, *names], value=NONE, label="Model", elem_id="model-1")
                    second = {"model": other, **_side(gr, 1)}
                with gr.Accordion("Settings", open=False):
                    reasoning = gr.Checkbox(reasons(models.paths[names[0]]), label="Reason before pointing")
                    points = gr.Slider(0, 20, 0, step=1, label="Number of points", info="0: as the model likes")
                    temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: greedy")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                samples = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
                gr.Examples([[str(SAMPLES / one["image"]), one["instruction"]] for one in samples],
                            [picture, instruction], label="Samples", cache_examples=False)  # fmt: skip
        inputs = [picture, instruction, reasoning, points, temperature, seed]

        def answer(
            image: Any, instruction: str, reasoning: bool, num_points: float, temperature: float, seed: float | None,
            model: str,
        ) -> Iterator[Any]:  # fmt: skip
            yield from _answer(gr, models, image, instruction, reasoning, num_points, temperature, seed, model)

        def show(state: Any, step: float) -> Iterator[tuple[Any, ...]]:
            yield from _at_step(gr, models, state, step)

        for number, side in enumerate([first, second]):
            outputs = [side[name] for name in ("state", "text", "shown", "step", "words", "table", "download")]
            api: dict[str, Any] = {"api_visibility": "private"} if number else {"api_name": "ask"}
            gr.on([asked.click, instruction.submit], answer, [*inputs, side["model"]], outputs, show_progress="hidden",
                  **api)  # fmt: skip
            side["step"].change(show, [side["state"], side["step"]],
                                [side[name] for name in ("state", "shown", "words", "text", "download")],
                                show_progress="minimal", api_visibility="private")  # fmt: skip
    return app


def _read_picture(gr: Any, read: Callable[[Any], Any], payload: Any) -> Any:
    try:
        return read(payload)
    except BROKEN_IMAGE as error:
        raise gr.Error(f"This file is no image that can be read: {error}", print_exception=False) from None


def _side(gr: Any, number: int) -> dict[str, Any]:
    """The components of one model's answer by name."""
    return {
        "shown": gr.Image(label="Answer", interactive=False, type="pil", format="png", buttons=["fullscreen"],
                          elem_id=f"shown-{number}"),
        "text": gr.HTML(label="Reasoning and answer", show_label=True, container=True, padding=True,
                        elem_id=f"text-{number}"),
        "table": gr.Dataframe(headers=["x", "y", "pixel", "confidence"], interactive=False, label="Points",
                              elem_id=f"points-{number}"),
        "step": gr.Slider(0, 7, 0, step=1, label="Attention at step", elem_id=f"step-{number}", interactive=True,
                          info="0: the image; from 1: where the model looked during each step"),
        "words": gr.Textbox(label="This step", lines=2, interactive=False, elem_id=f"words-{number}"),
        "download": gr.DownloadButton("Download JSON", interactive=False, elem_id=f"download-{number}"),
        "state": gr.State(None),
    }  # fmt: skip


def _answer(
    gr: Any, models: Models, path: str | None, instruction: str, reasoning: bool, points: float, temperature: float,
    seed: float | None, name: str,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Updates of one column: the text as it comes, then everything else."""
    from ..core.images import open_image
    from ..drawing.canvas import figure_to_image
    from ..drawing.figures import draw_overlay
    from .session import DemoAnswer, as_record, ask

    if name == NONE:
        yield None, "", None, 0, "", [], gr.DownloadButton(interactive=False)
        return
    if path is None:
        raise gr.Error("An image is missing: upload one or choose a sample.", print_exception=False)
    settings = {"reasoning": bool(reasoning), "num_points": int(points) or None, "temperature": float(temperature),
                "seed": int(seed or 0)}  # fmt: skip
    keep = gr.skip()
    try:
        image = open_image(path)
        yield None, "", figure_to_image(draw_overlay(image, ())), 0, "", [], gr.DownloadButton(interactive=False)
        for update in ask(models.get(name), name, image, instruction, **settings):
            if isinstance(update, str):
                yield keep, answer_html(update, image.size), keep, keep, keep, keep, keep
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None
    assert isinstance(update, DemoAnswer)
    rows = [[f"{point['x']:.3f}", f"{point['y']:.3f}", ", ".join(f"{value:.0f}" for value in point["pixel"]),
             "-" if point["confidence"] is None else f"{point['confidence']:.0%}"]
            for point in as_record(update)["points"]]  # fmt: skip
    for state, picture, words, text, download in _at_step(gr, models, {"answer": update, "path": path}, 0):
        yield state, text, picture, 0, words, rows, download


def _at_step(gr: Any, models: Models, state: dict[str, Any] | None, step: float) -> Iterator[tuple[Any, ...]]:
    """The state, the image, a line about it, the answer's text and its file at a position of the slider: 0, or a step.

    The attention is read when the slider first leaves 0.
    """
    if state is None:
        yield None, None, "", "", gr.DownloadButton(interactive=False)
        return
    from ..core.images import open_image, unpad_map
    from ..drawing.canvas import figure_to_image
    from ..drawing.figures import draw_overlay, shared_vmax
    from .session import as_record, with_attention

    image = open_image(state["path"])
    if step >= 1 and state["answer"].attention is None:
        answer = state["answer"]
        state = {**state, "answer": with_attention(answer, models.get(answer.model), image)}
    answer = state["answer"]
    attention, prediction = answer.attention, answer.prediction
    heat, vmax, labels, key = None, 0.0, [], None
    if step < 1:
        labels = [f"{place}: {value:.0%}" for place, value in enumerate(prediction.point_confidence, 1)]
        words = "The image with the points and the model's confidence in each."
    elif not attention.response.steps:  # the same at every position of the slider
        rows = attention.captured.attention.astype(np.float32).mean(axis=(0, 1))
        heat = unpad_map(rows.reshape(attention.maps.shape[1:]), answer.size)
        vmax = float(heat.max())
        words = f"This answer has no steps. Attention over all of it: {rows.sum():.1%} on the image."
    else:
        steps, number = attention.step_maps(answer.size), min(int(step), len(attention.titles))  # two more with hops
        shown, key = steps[number - 1], list(attention.titles)[number - 1]
        heat, vmax = shown.heat, shared_vmax(steps)
        words = f"{shown.title}: {shown.share:.1%} of attention on the image"
        if heat is None:
            words = f"{shown.title}: missing from this answer."
    picture = figure_to_image(draw_overlay(image, prediction.response.points, heat, vmax, labels))
    with tempfile.TemporaryDirectory(prefix="trace-demo-") as folder:  # gradio keeps a copy while the page is open
        file = Path(folder) / "answer.json"
        file.write_text(json.dumps(as_record(answer), indent=2), encoding="utf-8")
        download = gr.DownloadButton(value=str(file), interactive=True)
        yield state, picture, words, answer_html(prediction.text, answer.size, key), download


def answer_html(text: str, size: tuple[int, int], shown: str | None = None) -> str:
    """Return an answer, complete or not yet, as HTML: its steps below their headings, the `shown` one marked.

    Everything the model wrote is escaped. The raw text follows in a folded block.
    """
    from ..attention.steps import ANSWER, step_titles
    from ..core.reasoning import parse
    from ..drawing.figures import answer_text

    response = parse(text, size)
    parts = [(step.key, step.text) for step in response.parts]
    raw = f"<pre style='white-space: pre-wrap; overflow-wrap: anywhere; margin: 0'>{escape(text)}</pre>"
    below = "<div style='height: 1.4em'></div>"  # the component's label covers its corner
    if not parts:
        return below + raw
    if response.answer_span is not None:
        parts.append((ANSWER, answer_text(response)))
    html = below
    for number, (key, body) in enumerate(parts, 1):
        mark = "background: var(--color-accent-soft); border-color: var(--color-accent)" if key == shown else ""
        html += (
            f"<div data-step='{key}' style='padding: 4px 10px; border-left: 3px solid transparent; {mark}'>"
            f"<b>{number}. {escape(step_titles([key])[key])}</b><br>"
            f"<span style='overflow-wrap: anywhere'>{escape(body)}</span></div>"
        )
    summary = "<summary style='cursor: pointer'>The model's text</summary>"
    return f"{html}<details style='margin: 8px 0 0 10px'>{summary}{raw}</details>"


if __name__ == "__main__":
    raise SystemExit(run(main))
