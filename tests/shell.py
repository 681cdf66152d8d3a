"""What the tests of scripts share: running them, stand-ins for programs, and the tested versions."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash") or "/bin/bash"


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{BASH}\n{text}\n")
    path.chmod(0o755)


def bash(script, *arguments, cwd, path=None, **variables):
    """A script of the repository, run in `cwd`; `path` goes before the PATH, `variables` into the environment."""
    hidden = ("SLURM", "CONDA", "TRACE_", "HOSTFILE", "MASTER_", "NODE_RANK")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHON" and not name.startswith(hidden)}
    if path is not None:
        kept["PATH"] = f"{path}{os.pathsep}{kept['PATH']}"
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run([BASH, str(ROOT / script), *arguments], cwd=cwd, env={**kept, **variables}, **options)


def kill_when(reached, command):
    """Start a command and kill it with its workers as soon as `reached()`; it must not end before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    limit = time.monotonic() + 120
    try:
        while not reached():
            assert process.poll() is None and time.monotonic() < limit, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def one_sentence(done):
    """What a script says when it stops for a reason that the user can mend: one line, exit code 2, nothing else."""
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def pins():
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {pin.name.lower(): pin for pin in map(Requirement, filter(None, lines))}
