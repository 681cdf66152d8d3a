"""`trace-vlm serve`: what it refuses before it starts, and how it ends."""

import os
import signal
import socket
import subprocess
import sys

import httpx2 as httpx
import pytest
from http_server import message
from shell import ROOT

from trace_vlm.serve import serve
from trace_vlm.utils.command import run

QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.mark.parametrize("words, flags, key", [
    ("TRACE_API_KEY", ["--host", "0.0.0.0"], None), ("TRACE_API_KEY", ["--host", "192.168.0.7"], ""),
    ("without blanks", [], "two words"), ("without blanks", [], "clé"), ("--port", ["--port", "0"], None),
    ("--batch-window 'soon'", ["--batch-window", "soon"], None), ("--timeout", ["--timeout", "nan"], None),
    ("--max-queue", ["--max-queue", "0"], None), ("no/model", ["--model", "no/model"], None),
    ("cannot be listened to", ["--host", "203.0.113.1", "--insecure"], None),
])  # fmt: skip
def test_a_wrong_flag_is_refused_with_one_sentence(words, flags, key, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] + (words == "no/model")
        monkeypatch.delenv(serve.KEY, raising=False)
        if key is not None:
            monkeypatch.setenv(serve.KEY, key)
        handler = signal.getsignal(signal.SIGTERM)
        assert run(serve.main, ["--port", str(port), *flags]) == 2
        signal.signal(signal.SIGTERM, handler)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_server_finishes_what_it_began_and_a_second_on_its_port_says_so(tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "trace_vlm.serve.serve", "--model", str(tiny_model), "--port", str(port)]
    environment = {**os.environ, serve.KEY: "secret"}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, **QUIET)
    try:
        assert "http://127.0.0.1" in server.stdout.readline()
        second = subprocess.run(command, cwd=ROOT, env=environment, timeout=120, **QUIET)
        assert second.returncode == 2 and second.stderr.count("\n") == 1 and str(port) in second.stderr
        asked = {"messages": message(), "stream": True, "max_tokens": 300}
        headers = {"Authorization": "Bearer secret"}
        with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, headers=headers,
                          timeout=120) as answer:  # fmt: skip
            pieces = answer.iter_lines()
            assert next(pieces).startswith("data: ")
            server.send_signal(signal.SIGTERM)
            *_, last = filter(None, pieces)
        assert last == "data: [DONE]" and server.wait(60) == 0
        printed = server.stderr.read() + server.stdout.read() + second.stderr + second.stdout
        assert "Error" not in printed and environment[serve.KEY] not in printed
    finally:
        server.kill()
        server.communicate()
