"""The README's own commands, in its order, as a reader types them from the root of the repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from shell import ROOT

ELSEWHERE = ("#", "bash ", "source ")  # installing, GPUs, the whole quickstart


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


def test_every_command_of_the_readme_is_one_of_the_repository() -> None:
    for command in commands():
        words = [word for word in shlex.split(command) if not word.startswith("OMP_NUM_THREADS=")]
        assert words[0] in ("python", "trace-vlm"), command
        if words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            assert module.is_dir() or module.with_suffix(".py").is_file(), command
    assert len(commands()) >= 12


@pytest.mark.slow
def test_the_commands_of_the_readme_run_one_after_the_other(tmp_path: Path) -> None:
    for name in ("trace", "configs", "visualization", "data_samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands():
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        assert "Traceback" not in done.stderr, command
    assert (tmp_path / "output/comparison/report.html").stat().st_size > 10_000
    assert (tmp_path / "output/attention/report.html").stat().st_size > 10_000
    summary = json.loads((tmp_path / "output/attention/summary.json").read_text(encoding="utf-8"))
    assert not any(summary["missing"].values()), "the README's pictures of attention show steps"
