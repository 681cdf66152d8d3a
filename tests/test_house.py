"""The project's own files: one tested version for each dependency, one version of the package, the README's commands."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from shell import ROOT, pins

import trace_vlm

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ELSEWHERE = ("#", "bash ", "source ")  # installing, GPUs, the whole quickstart


def test_every_direct_dependency_has_one_tested_version_inside_its_range_and_the_package_one_version():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    needs = {need.name.lower(): need for group in groups for need in map(Requirement, group)}
    assert set(pins()) == set(needs)
    for name, pin in pins().items():
        (exact,) = pin.specifier
        assert exact.operator == "==" and needs[name].specifier.contains(exact.version), pin
    assert not {"torchvision", "flash-attn", "flash_attn"} & set(needs), "what breaks an installation is no requirement"
    assert trace_vlm.__version__ == PROJECT["version"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


def test_every_command_of_the_readme_is_one_of_the_repository():
    for command in commands():
        words = [word for word in shlex.split(command) if not word.startswith("OMP_NUM_THREADS=")]
        assert words[0] in ("python", "trace-vlm"), command
        if words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            assert module.is_dir() or module.with_suffix(".py").is_file(), command
    assert len(commands()) >= 12


@pytest.mark.slow
def test_the_commands_of_the_readme_run_one_after_the_other(tmp_path):
    for name in ("trace", "configs", "visualization", "data_samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for command in commands():
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        assert "Traceback" not in done.stderr, command
    for name in ("comparison", "attention"):
        assert (tmp_path / f"output/{name}/report.html").stat().st_size > 10_000
    summary = json.loads((tmp_path / "output/attention/summary.json").read_text())
    assert not any(summary["missing"].values()), "the README's pictures of attention show steps"
