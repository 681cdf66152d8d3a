"""The project's own files: one tested version for each dependency, one version of the package."""

from __future__ import annotations

import tomllib

import yaml
from packaging.requirements import Requirement
from shell import ROOT, pins

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_direct_dependency_has_one_tested_version_inside_its_range():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    needs = {need.name.lower(): need for group in groups for need in map(Requirement, group)}
    assert set(pins()) == set(needs)
    for name, pin in pins().items():
        (exact,) = pin.specifier
        assert exact.operator == "==" and needs[name].specifier.contains(exact.version), pin
    # What breaks an installation is in no requirement.
    assert not {"torchvision", "flash-attn", "flash_attn"} & set(needs)


def test_the_version_is_the_same_everywhere():
    import trace_vlm

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert trace_vlm.__version__ == PROJECT["version"] == citation["version"]
