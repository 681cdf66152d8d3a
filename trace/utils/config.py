"""Typed configurations: YAML read into pydantic dataclasses; an unknown key or a bad value is an error that names it.

@config_class
class Lora:
    r: int = Field(128, ge=1)

config = read_config(Lora, "lora.yaml", ["r=64"])
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .command import InputError, existing_file

__all__ = ["Field", "ListOf", "build_config", "config_class", "parse_yaml", "read_config"]

T = TypeVar("T")
ListOf = Annotated[list[T], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""A list that may be written as one string, as in `--set data=train.json`."""


@dataclass_transform(frozen_default=True)
def config_class(kind: type[T]) -> type[T]:
    """Make a class a frozen dataclass that refuses unknown keys, wrong types, and values outside `Field(ge=, le=)`."""
    settings = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    return dataclass(frozen=True, slots=True, config=settings)(kind)  # type: ignore[return-value]


def read_config(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file as the configuration class `kind`. InputError names the file and the key of the first mistake.

    `overrides` are `key=value` pairs that replace values of the file; `section.key=value` reaches into a section, and
    values are YAML.
    """
    path = existing_file(path, "the configuration")
    values = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    values = {} if values is None else values
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"--set {override}: expected key=value")
        *sections, last = key.strip().split(".")
        section = values
        for name in sections:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[last] = parse_yaml(text, f"--set {override}")
    return build_config(kind, values, str(path))


def build_config(kind: type[T], values: Any, source: str) -> T:
    """Check a mapping and convert it to the configuration class `kind`; an InputError begins with `source`."""
    if not isinstance(values, Mapping):
        raise InputError(f"{source} must contain `key: value` lines, not {values!r}")
    try:
        config = TypeAdapter(kind).validate_python(values)
        _refuse_bools(values, config, source)
        return config
    except ValidationError as error:
        # The alternatives of a union report one mistake each: the deepest is the one meant. A misspelt key comes
        # before the key that it leaves missing.
        mistake = max(error.errors(), key=lambda e: (len(e["loc"]), e["type"] == "unexpected_keyword_argument"))
    raise InputError(f"{source}: {_message(kind, values, dict(mistake))}")


def _refuse_bools(values: Mapping[str, Any], config: object, source: str, section: str = "") -> None:
    """Raise InputError where a value is true or false and the key a number: pydantic reads them as 1 and 0."""
    for key, value in values.items():
        converted = getattr(config, key, None)
        if isinstance(value, bool) and isinstance(converted, int | float) and not isinstance(converted, bool):
            raise InputError(f"{source}: {section}{key}: input should be a number, not {value}")
        if isinstance(value, Mapping) and dataclasses.is_dataclass(converted):
            _refuse_bools(value, converted, source, f"{section}{key}.")


def _message(kind: Any, values: Any, mistake: dict[str, Any]) -> str:
    """Name the key and the mistake; pydantic's location also holds the alternatives of unions, which are no keys."""
    keys: list[str] = []
    for part in mistake["loc"]:
        if part in (fields := getattr(kind, "__pydantic_fields__", {})):
            hint = fields[part].annotation
            kind = next((choice for choice in (hint, *get_args(hint)) if dataclasses.is_dataclass(choice)), None)
        if isinstance(values, dict) and (part in values or part == mistake["loc"][-1]):
            keys, values = [*keys, str(part)], values.get(part)
        elif isinstance(values, list) and part in range(len(values)):
            keys, values = [*keys, str(part)], values[part]
    name = ".".join(keys)
    if mistake["type"] == "unexpected_keyword_argument":
        known = list(kind.__pydantic_fields__)
        close = difflib.get_close_matches(keys[-1], known, n=1)
        return f"unknown key {name}. " + (f"Did you mean {close[0]}?" if close else f"Known keys: {', '.join(known)}")
    if mistake["type"] == "missing" and keys[-1] == mistake["loc"][-1]:  # not an item of a list
        return f"missing key {name}"
    if mistake["type"] == "value_error":  # raised by a configuration's own check, which names the key
        return str(mistake["ctx"]["error"])
    text = f"{name}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}, not {values!r}"
    return text + (". Quote on, off, yes and no: YAML reads them as true and false" if isinstance(values, bool) else "")


# What yaml raises besides its own errors: for a date of month 13, `!!bool x`, a thousand brackets.
BROKEN_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


def parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except BROKEN_YAML as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
