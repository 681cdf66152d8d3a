"""The demo: ask a model in the browser, watch it reason, see its points, and where it looked during each step.

    trace-vlm demo                                       # the small model that ships with the package
    trace-vlm demo --model trace=output/trace-13b --model robopoint=checkpoints/robopoint

Everything happens on this machine: the page is served on 127.0.0.1 alone, it may load nothing from elsewhere (a content
security policy says so to the browser), and no usage numbers are sent. Needs the extra `demo`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.images import BROKEN_IMAGE
from ..utils.command import InputError, Parser, install_hint, run

if TYPE_CHECKING:
    from .session import Models, Told

HOST = "127.0.0.1"
UPLOAD_LIMIT = "20mb"
SAMPLES = Path(__file__).parents[1] / "assets" / "demo"
NONE = "(none)"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace-vlm demo", description="Ask a model in the browser; nothing leaves this machine.")
    parser.add_argument(
        "--model",
        "--model-path",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="may be given several times",
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="as torch names it; a GPU if there is one")
    parser.add_argument("--dtype", help="of the weights; float32 on a CPU, on a GPU as stored")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    arguments = parser.parse_args(argv)

    from .session import Models, model_paths

    models = Models(model_paths(arguments.model), arguments.device, arguments.dtype)
    if not 0 < arguments.port < 65536:
        raise InputError(f"--port has to lie between 1 and 65535, not {arguments.port}")
    launch(models, arguments.port, arguments.open)
    return 0


def launch(models: Models, port: int, browser: bool = False, wait: bool = True) -> Any:
    """Serve the page; returns the app, at once when `wait` is False.

    Raises:
        InputError: gradio is not installed, or the port is taken.
    """
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
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=browser,
            prevent_thread_lock=True,
            quiet=True,  # its own words advise a public link
            max_file_size=UPLOAD_LIMIT,
            allowed_paths=[str(SAMPLES)],
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=gr.themes.Default(font=local, font_mono=["ui-monospace", "monospace"]),
            app_kwargs={"middleware": [Middleware(OnlyHere)], "docs_url": None, "redoc_url": None},
        )
    except OSError as error:
        raise InputError(f"port {port} cannot be used ({error}); give another with --port") from None
    if wait:
        print(f"open http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
        app.block_thread()
    return app


class OnlyHere:
    """Adds the content security policy to every answer of the server."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"content-security-policy", POLICY.encode()))
            await send(message)

        await self.app(scope, receive, with_policy)


# --- the page ------------------------------------------------------------------------------------------------------


def build(models: Models) -> Any:
    """The page as a gradio app."""
    import gradio as gr

    names = list(models.paths)
    with gr.Blocks(title="TRACE", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as app:
        gr.Markdown("# TRACE\nA picture and an instruction; the model reasons in words, then points.")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                picture = gr.Image(type="filepath", image_mode=None, label="Image", sources=["upload", "clipboard"],
                                   buttons=[], elem_id="picture", height=300)  # fmt: skip
                _tell_broken_files(gr, picture)
                instruction = gr.Textbox(
                    label="Instruction", lines=2, placeholder="Point to ...", elem_id="instruction"
                )
                asked = gr.Button("Ask", variant="primary", elem_id="ask")
                with gr.Group():
                    reasoning = gr.Checkbox(True, label="Reason before pointing")
                    points = gr.Slider(0, 20, 0, step=1, label="Number of points", info="0: as the model likes")
                    temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: greedy")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                samples = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
                gr.Examples([[str(SAMPLES / one["image"]), one["instruction"]] for one in samples],
                            [picture, instruction], label="Samples", cache_examples=False)  # fmt: skip
            sides = [_side(gr, names, 0), _side(gr, [NONE, *names], 1)]
        inputs = [picture, instruction, reasoning, points, temperature, seed]
        for side in sides:
            outputs = [side[name] for name in ("state", "text", "shown", "step", "words", "table", "download")]

            def answer(path: Any, *given: Any, models: Models = models) -> Iterator[Any]:
                yield from _answer(gr, models, path, *given)

            gr.on([asked.click, instruction.submit], answer, [*inputs, side["model"]], outputs, show_progress="hidden")
            side["step"].change(_at_step, [side["state"], side["step"]],
                                [side["shown"], side["words"], side["text"]], show_progress="hidden")  # fmt: skip
    return app


def _tell_broken_files(gr: Any, picture: Any) -> None:
    """Make an image component name what is wrong with a file; gradio's own shows a bare "Error".

    The method of this one component is replaced: gradio writes a stub file beside the source of every sub-class.
    """
    read = picture.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except BROKEN_IMAGE as error:
            raise gr.Error(f"This file is no image that can be read: {error}", print_exception=False) from None

    picture.preprocess = preprocess


def _side(gr: Any, names: Sequence[str], number: int) -> dict[str, Any]:
    """The column of one model."""
    with gr.Column(scale=1, min_width=300):
        label = "Model" if number == 0 else "Beside it"
        found = {"model": gr.Dropdown(list(names), value=names[0], label=label, elem_id=f"model-{number}")}
        found["shown"] = gr.Image(label="Answer", interactive=False, type="pil", format="png", buttons=["fullscreen"],
                                  elem_id=f"shown-{number}")  # fmt: skip
        found["step"] = gr.Slider(0, 5, 0, step=1, label="Attention at step", elem_id=f"step-{number}",
                                  info="0: the image; 1 to 5: where the model looked during each step",
                                  interactive=True)  # fmt: skip
        found["words"] = gr.Textbox(label="This step", lines=2, interactive=False, elem_id=f"words-{number}")
        found["text"] = gr.HTML(label="Reasoning and answer", show_label=True, container=True, padding=True,
                                elem_id=f"text-{number}")  # fmt: skip
        found["table"] = gr.Dataframe(headers=["x", "y", "pixel", "confidence"], interactive=False, label="Points",
                                      elem_id=f"points-{number}")  # fmt: skip
        found["download"] = gr.DownloadButton("Download JSON", interactive=False, elem_id=f"download-{number}")
        found["state"] = gr.State(None)
    return found


def _answer(
    gr: Any, models: Models, path: str | None, instruction: str, reasoning: bool, points: float, temperature: float,
    seed: float | None, name: str,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Updates of one column: the text as it comes, then everything else."""
    from ..core.images import open_image
    from .session import Options, Told, as_record, ask

    if name == NONE:
        yield None, "", None, 0, "", [], gr.DownloadButton(interactive=False)
        return
    if path is None:
        raise gr.Error("An image is missing: upload one or choose a sample.", print_exception=False)
    options = Options(bool(reasoning), int(points), float(temperature), int(seed or 0))
    keep = gr.skip()
    try:
        image = open_image(path)
        yield None, "", _shown(image), 0, "", [], gr.DownloadButton(interactive=False)
        for found in ask(models.get(name), name, image, instruction, options):
            if isinstance(found, str):
                yield keep, written(found, image.size), keep, keep, keep, keep, keep
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None
    assert isinstance(found, Told)
    record = as_record(found)
    rows = [
        [f"{one['x']:.3f}", f"{one['y']:.3f}", ", ".join(f"{value:.0f}" for value in one["pixel"]),
         "-" if one["confidence"] is None else f"{one['confidence']:.0%}"]
        for one in record["points"]
    ]  # fmt: skip
    state = {"told": found, "path": path}
    picture, words, text = _at_step(state, 0)
    with tempfile.TemporaryDirectory(prefix="trace-demo-") as folder:  # gradio keeps a copy while the page is open
        file = Path(folder) / "answer.json"
        file.write_text(json.dumps(record, indent=2), encoding="utf-8")
        download = gr.DownloadButton(value=str(file), interactive=True)
        yield state, text, picture, 0, words, rows, download


def _at_step(state: dict[str, Any] | None, step: float) -> tuple[Any, str, str]:
    """The picture, a line about it and the answer's text for a place of the slider."""
    if state is None:
        return None, "", ""
    from ..attention.steps import MILESTONES

    told: Told = state["told"]
    picture, words = _looked(told, state["path"], int(step))
    key = list(MILESTONES)[int(step) - 1] if step >= 1 else None
    return picture, words, written(told.prediction.text, told.size, key)


def _looked(told: Told, path: str, step: int) -> tuple[Any, str]:
    """The picture with its points, or with the attention of a step (from 1), and a line about it."""
    from ..core.images import open_image, unpad_map
    from ..drawing.figures import shared_top

    image, steps = open_image(path), told.maps.steps(told.size)
    points = told.prediction.response.points
    labels = [f"{number}: {sure:.0%}" for number, sure in enumerate(told.prediction.point_confidence, 1)]
    if step < 1:
        return _shown(image, points, labels=labels), "The image with the points and how sure the model is of each."
    if not told.maps.response.steps:  # the whole of the answer is what there is, wherever the slider stands
        rows = told.maps.captured.attention.astype(np.float32).mean(axis=(0, 1))
        side = told.maps.maps.shape[-1]
        heat = unpad_map(rows.reshape(side, side), told.size)
        words = f"This answer has no steps. Attention over all of it: {rows.sum():.1%} of it on the image."
        return _shown(image, points, heat, float(heat.max())), words
    one = steps[step - 1]
    if one.heat is None:
        return _shown(image, points), f"{one.title}: missing from this answer."
    words = f"{one.title}: {one.share:.1%} of attention on the image"
    return _shown(image, points, one.heat, shared_top(steps)), words


def written(text: str, size: tuple[int, int], shown: str | None = None) -> str:
    """An answer as HTML, whole or as far as it has come: its steps below their headings, the `shown` one marked.

    What the model wrote is escaped. The raw text stands below the steps, folded.
    """
    from ..attention.steps import ANSWER
    from ..core.reasoning import HEADINGS, parse
    from ..drawing.figures import answer_text

    response = parse(text, size)
    parts = [(step.key, HEADINGS[step.key], step.text) for step in response.steps]
    raw = f"<pre style='white-space: pre-wrap; overflow-wrap: anywhere; margin: 0'>{escape(text)}</pre>"
    below = "<div style='height: 1.4em'></div>"  # the component's label lies over its corner
    if not parts:
        return below + raw
    if response.answer_span is not None:
        parts.append((ANSWER, "Final answer", answer_text(response)))
    found = []
    for number, (key, heading, body) in enumerate(parts, 1):
        mark = "background: var(--color-accent-soft); border-color: var(--color-accent)" if key == shown else ""
        found.append(
            f"<div data-step='{key}' style='padding: 4px 10px; border-left: 3px solid transparent; {mark}'>"
            f"<b>{number}. {escape(heading)}</b><br><span style='overflow-wrap: anywhere'>{escape(body)}</span></div>"
        )
    summary = "<summary style='cursor: pointer'>The model's text</summary>"
    return below + "".join(found) + f"<details style='margin: 8px 0 0 10px'>{summary}{raw}</details>"


def _shown(image: Any, points: Any = (), heat: Any = None, top: float = 0.0, labels: Sequence[str] = ()) -> Any:
    from ..drawing.canvas import as_image
    from ..drawing.figures import overlay

    return as_image(overlay(image, points, heat, top, labels))


if __name__ == "__main__":
    raise SystemExit(run(main))
