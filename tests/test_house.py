"""The project's own files: one tested version for each dependency, one version of the package, the papers cited."""

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


def test_pre_commit_runs_the_tested_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["additional_dependencies"] for hook in hooks] == [[str(pins()["ruff"])]] * 2


def test_the_three_papers_are_cited():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    numbers = [reference["identifiers"][0]["value"].removeprefix("arXiv:") for reference in references]
    assert numbers == ["2511.01999", "2406.10721", "2310.03744"]
    assert all(reference["url"].endswith(number) for reference, number in zip(references, numbers, strict=True))
