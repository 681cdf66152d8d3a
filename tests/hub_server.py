"""A local server that answers as the Hugging Face Hub does for a download, and logs what it was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repository: str
    folder: Path
    log: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.log.append(f"{self.command} {path}")
        names = sorted(one.relative_to(self.folder).as_posix() for one in self.folder.rglob("*") if one.is_file())
        resolve = f"/datasets/{self.repository}/resolve/{COMMIT}/"
        if path.startswith(f"/api/datasets/{self.repository}/revision/") or path == f"/api/datasets/{self.repository}":
            about = {"id": self.repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self._send(200, json.dumps(about).encode(), body)
        elif path.startswith(f"/api/datasets/{self.repository}/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": (self.folder / name).stat().st_size,
                    "oid": hashlib.sha1((self.folder / name).read_bytes()).hexdigest(),
                }
                for name in names
            ]
            self._send(200, json.dumps(tree).encode(), body)
        elif path.startswith(resolve) and path.removeprefix(resolve) in names:
            content = (self.folder / path.removeprefix(resolve)).read_bytes()
            self._send(200, content, body, etag=hashlib.sha1(content).hexdigest())
        else:
            self._send(404, b"{}", body, code="RepoNotFound")

    def _send(self, status: int, content: bytes, body: bool, etag: str = "", code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(repository: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, log) of a server that holds one data set: the files of `folder`."""
    log: list[str] = []
    handler = type("Handler", (_Handler,), {"repository": repository, "folder": folder, "log": log})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
