"""A local server that answers as the Hugging Face Hub does for a download, and logs what it was asked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kind: str
    repositories: Mapping[str, Path]
    log: list[str]
    cut: str

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.log.append(f"{self.command} {path}")
        home = "" if self.kind == "models" else f"/{self.kind}"
        for repository, folder in self.repositories.items():
            api, resolve = f"/api/{self.kind}/{repository}", f"{home}/{repository}/resolve/{COMMIT}/"
            names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
            if path == api or path.startswith(f"{api}/revision/"):
                siblings = [{"rfilename": name} for name in names]
                return self._send(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
            if path.startswith(f"{api}/tree/"):
                contents = {name: (folder / name).read_bytes() for name in names}
                tree = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in contents.items()]  # fmt: skip
                return self._send(json.dumps(tree).encode())
            if path.startswith(resolve):
                name = path.removeprefix(resolve)
                if name not in names:
                    return self._send(b"{}", error="EntryNotFound")
                content, self.close_connection = (folder / name).read_bytes(), name == self.cut
                return self._send(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        return self._send(b"{}", error="RepoNotFound")

    do_HEAD = do_GET

    def _send(self, content: bytes, error: str = "", **headers: str) -> None:
        self.send_response(404 if error else 200)
        headers |= {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT}
        for name, value in {**headers, **({"X-Error-Code": error} if error else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if self.close_connection else content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(repositories: Mapping[str, Path], kind: str, cut: str = "") -> Iterator[tuple[str, list[str]]]:
    """(address, log) of a server that holds repositories ("datasets" or "models"); `cut` is a file sent to its half."""
    log: list[str] = []
    handler = type("Handler", (_Handler,), {"kind": kind, "repositories": repositories, "log": log, "cut": cut})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()


def run_module(address: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ...` with this server as its hub."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    command = [sys.executable, "-P", "-m", *words]
    return subprocess.run(command, env=environment, cwd=home.parent, capture_output=True, text=True, timeout=120)
