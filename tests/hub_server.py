"""A local server that answers as the Hugging Face Hub does for a download, and logs what it was asked."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Runs commands one after the other, and prints what each returned and wrote to standard error.
COMMANDS = """
import contextlib, io, json, sys
from trace_vlm.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    print(json.dumps([code, error.getvalue()]))
"""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
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
                contents = ((name, (folder / name).read_bytes()) for name in names)
                tree = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in contents]  # fmt: skip
                return self._send(json.dumps(tree).encode())
            if path.startswith(resolve):
                name = path.removeprefix(resolve)
                if name not in names:
                    return self._send(b"{}", error="EntryNotFound")
                content, self.close_connection = (folder / name).read_bytes(), f"{repository}/{name}" == self.cut
                return self._send(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        return self._send(b"{}", error="RepoNotFound")

    do_HEAD = do_GET

    def _send(self, content, error="", **headers):
        self.send_response(404 if error else 200)
        headers |= {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT}
        for name, value in {**headers, **({"X-Error-Code": error} if error else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if self.close_connection else content)

    def log_message(self, *_): ...


@contextmanager
def hub(repositories, kind, cut=""):
    """(address, log) of a server with repositories ("datasets" or "models"); of OWNER/NAME/FILE `cut` half is sent."""
    handler = type("Handler", (_Handler,), {"kind": kind, "repositories": repositories, "log": (log := []), "cut": cut})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", log
        server.shutdown()


def run_module(address, home, *words):
    """`python -m MODULE ...` with this server as its hub."""
    return _python(address, home, "-m", *words)


def run_commands(address, home, *commands):
    """(exit code, standard error) of each `trace-vlm COMMAND ...`, all in one process, with this server as their hub."""
    done = _python(address, home, "-c", COMMANDS, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


def _python(address, home, *words):
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    options = dict(env=environment, cwd=home.parent, capture_output=True, text=True, timeout=300)
    return subprocess.run([sys.executable, "-P", *words], **options)
