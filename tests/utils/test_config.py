"""Configurations: what is accepted, and that an error names the file and the key."""

import re
from dataclasses import field
from typing import Literal

import pytest

from trace_vlm.utils.command import InputError
from trace_vlm.utils.config import Field, ListOf, build_config, config_class, read_config


@config_class
class Lora:
    r: int = Field(128, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)


@config_class
class Run:
    model: str | Lora
    data: ListOf[str]
    learning_rate: float = Field(2e-5, gt=0)
    resume: Literal["auto", "never"] = "auto"
    lora: Lora | None = None
    span: tuple[float, float] = (0.0, 1.0)
    sections: list[Lora] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.span[0] > self.span[1]:
            raise InputError("span: the ends are reversed")


def read(tmp_path, text, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_config(Run, path, overrides)


def test_yaml_and_overrides(tmp_path):
    text = "model: nano\ndata: [a.json]\nlearning_rate: 2e-4\n"
    expected = Run("nano", ["b.json"], 2e-4, lora=Lora(r=64), span=(1.0, 2.0))
    assert read(tmp_path, text, "data=b.json", "lora.r=64", "span=[1, 2]") == expected


@pytest.mark.parametrize("values, named", [
    ({"learing_rate": 1}, "unknown key learing_rate. Did you mean learning_rate"),
    ({"lora": {"rank": 3}}, "unknown key lora.rank"), ({"lora": {"r": 0}}, "lora.r"), ({"lora": 3}, "lora"),
    ({"learning_rate": "fast"}, "learning_rate"), ({"learning_rate": True}, "learning_rate"),
    ({"learning_rate": float("nan")}, "learning_rate"), ({"resume": False}, "resume"), ({"span": [2, 1]}, "span"),
    ({"span": [2]}, "span"), ({"data": [3]}, "data.0"), ({"model": {"r": "x"}}, "model.r"),
    ({"sections": [{}, {"r": -1}]}, "sections.1.r"), ({"model": None}, "model"), ({3: 4}, "3"),
])  # fmt: skip
def test_errors_name_source_and_key(values, named):
    with pytest.raises(InputError, match=rf"^run\.yaml: {re.escape(named)}"):
        build_config(Run, {"model": "nano", "data": "a"} | values, "run.yaml")


@pytest.mark.parametrize("text, overrides, named", [
    ("model: nano\n", [], "missing key data"), ("- 1\n", [], "run.yaml"), ("model: [\n", [], "run.yaml"),
    ("model: 2020-13-01\n", [], "run.yaml"), ("model: !!bool x\n", [], "run.yaml"), ("[" * 3000, [], "run.yaml"),
    ("model: nano\ndata: a\n", ["lora"], "--set lora"), ("model: nano\ndata: a\n", ["lora=["], r"--set lora=\["),
])  # fmt: skip
def test_broken_files_and_overrides(tmp_path, text, overrides, named):
    with pytest.raises(InputError, match=named):
        read(tmp_path, text, *overrides)
