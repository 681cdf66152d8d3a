"""Check this machine for what the commands need: versions, GPU, rendering, extras, memory, disk and caches.

    trace-vlm doctor

What is missing is printed with the line that mends it; the exit code is 1 if a required package is missing or too old.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from .utils.command import InputError, Parser, install_hint, run

DISTRIBUTION = "trace-vlm"
NEEDS_BYTES = 30e9  # of disk for a 13B model in half precision, once
RENDER_SECONDS = 60


class Finding(NamedTuple):
    """One line of the report. `state`: "ok", "note" (works without it) or "missing"."""

    state: str
    text: str
    advice: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    Parser(description="Check this machine for what the commands need.", examples=__doc__).parse_args(argv)
    worst = 0
    for check in (python_and_packages, accelerator, rendering, resources):
        for finding in check():
            print(f"{finding.state:<8}{finding.text}", flush=True)
            if finding.advice:
                print(f"{'':<8}-> {finding.advice}")
            worst = max(worst, finding.state == "missing")
    return worst


def python_and_packages() -> Iterator[Finding]:
    """Yield the versions of Python and of the required packages, then the extras that are not complete."""
    from packaging.requirements import Requirement

    yield Finding("ok", f"Python {sys.version.split()[0]}, {DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
    extras: dict[str, list[str]] = {}
    for line in metadata.requires(DISTRIBUTION) or ():
        requirement = Requirement(line)
        found = re.search(r"""extra == ["']([\w-]+)""", str(requirement.marker or ""))
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        fits = bool(version) and requirement.specifier.contains(version, prereleases=True)
        if found:
            extras.setdefault(found[1], []).extend([requirement.name] * (not fits))
        elif not fits:
            has = f"is {version}" if version else "is not installed"
            yield Finding(
                "missing", f"{requirement.name} {has}", f"pip install '{requirement.name}{requirement.specifier}'"
            )
        elif requirement.name in ("torch", "transformers"):
            yield Finding("ok", f"{requirement.name} {version}")
    complete = [name for name, missing in extras.items() if not missing]
    yield Finding("ok", f"extras: {', '.join(complete) or 'none'}")
    for name, missing in extras.items():
        if missing:
            yield Finding("note", f"extra {name}: without {', '.join(missing)}", install_hint(name))


def accelerator() -> Iterator[Finding]:
    """Yield the GPUs and what they need, or how the CPU is used."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("missing", f"torch cannot be imported: {error}", "bash environment_setup.sh")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"GPU {index}: {card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    if torch.cuda.device_count():
        if importlib.util.find_spec("flash_attn") is None:
            yield Finding(
                "note", "flash-attn is not installed: PyTorch's attention is used", "bash environment_setup.sh --gpu"
            )
        if importlib.util.find_spec("deepspeed") and not shutil.which("nvcc"):
            advice = "install the CUDA toolkit of torch's version, or train without offloading"
            yield Finding("note", "nvcc is not found: DeepSpeed cannot compile its operators", advice)
        return
    text = "no GPU is visible to torch: models run on the CPU"
    driver = shutil.which("nvidia-smi") is not None
    advice = "install a CUDA build of torch: bash environment_setup.sh --gpu" if driver else ""
    yield Finding("note", text + " though there is an NVIDIA driver" * driver, advice)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    yield Finding("ok", f"{cores} CPU cores, {threads} threads (OMP_NUM_THREADS)")


def rendering() -> Iterator[Finding]:
    """Yield whether scenes can be rendered, tried in a process of its own: a broken driver can end it."""
    code = "from trace_vlm.data.scenes.generate import require_renderer; require_renderer()"
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=RENDER_SECONDS, check=False
        )
        last = (tried.stderr.strip().splitlines() or ["the process ended without a message"])[-1]
        failed = tried.returncode != 0
    except subprocess.TimeoutExpired:
        failed, last = True, f"no picture within {RENDER_SECONDS} s"
    backend = os.environ.get("MUJOCO_GL", "egl")
    if failed:
        reason, _, advice = last.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ").partition("; ")
        yield Finding("note", f"scenes cannot be rendered ({backend}): {reason}", advice)
    else:
        yield Finding("ok", f"scenes can be rendered ({backend})")


def resources() -> Iterator[Finding]:
    """Yield the memory, the disk and the cache of downloaded models."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            yield Finding("ok", f"{int(line.split()[1]) / 2**20:.0f} GiB of memory available")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for name, folder in (("this folder", Path.cwd()), (f"the cache of models, {home}", home)):
        there = next(part for part in (folder, *folder.parents) if part.exists())
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        advice = "" if writable else "set HF_HOME to a folder that can be written" if folder == home else "cd elsewhere"
        if writable and free < NEEDS_BYTES:
            advice = f"a 13B model needs {NEEDS_BYTES / 1e9:.0f} GB; set HF_HOME to a larger disk" * (folder == home)
        yield Finding("note" if advice else "ok", f"{free / 1e9:.0f} GB free in {name}", advice)


if __name__ == "__main__":
    raise SystemExit(run(main))
