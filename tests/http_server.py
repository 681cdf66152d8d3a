"""A server in this process: `with serving(predictor, timeout=1) as client`, an HTTP client with the server's address."""

import base64
import io
import threading
import time
from contextlib import contextmanager
from dataclasses import fields

import httpx2 as httpx
import uvicorn
from small_benchmark import picture

from trace_vlm.serve.app import ServerSettings, build_app
from trace_vlm.serve.requests import Limits

QUESTION = "Point left of the mug."
SHORT = {"max_new_tokens": 8}
FEW = {"max_tokens": 8}


def png(image=None, kind="PNG", **more):
    stream = io.BytesIO()
    (image or picture(0)).save(stream, kind, **more)
    return stream.getvalue()


def encoded(content):
    return base64.b64encode(content).decode()


def ask(client, content=None, instruction=QUESTION, **more):
    record = {"image": encoded(content or png()), "instruction": instruction, **SHORT, **more}
    return client.post("/v1/point", json=record)


def message(text=QUESTION, content=None):
    url = f"data:image/png;base64,{encoded(content or png())}"
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]}
    ]


def chat(client, text=QUESTION, **more):
    return client.post("/v1/chat/completions", json={"messages": message(text), **FEW, **more})


def sentence(answer, status=400):
    """The message of a refused request."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert {*error} == {"message", "type"} and error["message"] and "\n" not in error["message"]
    return error["message"]


@contextmanager
def serving(predictor, name="tiny", **settings):
    limits = {field.name: settings.pop(field.name) for field in fields(Limits) if field.name in settings}
    app = build_app(
        predictor, ServerSettings(name, limits=Limits(**{"image_bytes": 10**6, "pixels": 10**6, **limits}), **settings)
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
