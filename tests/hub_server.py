"""A local server that answers as the Hugging Face Hub does for a download, and logs what it was asked."""

from __future__ import annotations

import hashlib
import json
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
    folders: Mapping[str, Path]
    log: list[str]
    cut: str  # the file in the middle of which the connection ends

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.log.append(f"{self.command} {path}")
        home = "" if self.kind == "models" else f"/{self.kind}"
        for repository, folder in self.folders.items():
            api, resolve = f"/api/{self.kind}/{repository}", f"{home}/{repository}/resolve/{COMMIT}/"
            if path == api or path.startswith((f"{api}/", resolve)):
                self._serve(repository, folder, path.removeprefix(api), path.removeprefix(resolve), body)
                return
        self._send(404, b"{}", body, code="RepoNotFound")

    def _serve(self, repository: str, folder: Path, asked: str, name: str, body: bool) -> None:
        names = sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())
        if asked == "" or asked.startswith("/revision/"):
            about = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self._send(200, json.dumps(about).encode(), body)
        elif asked.startswith("/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": (folder / name).stat().st_size,
                    "oid": hashlib.sha1((folder / name).read_bytes()).hexdigest(),
                }
                for name in names
            ]
            self._send(200, json.dumps(tree).encode(), body)
        elif name in names:
            content = (folder / name).read_bytes()
            if name == self.cut:
                self.close_connection = True
            self._send(200, content, body, etag=hashlib.sha1(content).hexdigest())
        else:
            self._send(404, b"{}", body, code="EntryNotFound")

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
            self.wfile.write(content[: len(content) // 2] if self.close_connection else content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(
    repository: str, folder: Path, kind: str = "datasets", others: Mapping[str, Path] | None = None, cut: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """(address, log) of a server that holds one repository, and `others` of the same kind: the files of their folders.

    Args:
        kind: "datasets" or "models".
        cut: a file that is never sent further than to its half.
    """
    log: list[str] = []
    folders = {repository: folder, **(others or {})}
    handler = type("Handler", (_Handler,), {"kind": kind, "folders": folders, "log": log, "cut": cut})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
