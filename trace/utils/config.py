"""Configurations: YAML read into typed dataclasses, where an unknown key or a wrong type is an error that names it.

A configuration is a frozen dataclass of plain values, lists or tuples, `Literal` choices and nested dataclasses. The
libraries that do this either accept unknown keys or bring a configuration language with them; this is what is left.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from .command import InputError, existing_file

T = TypeVar("T")


def read_settings(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """A YAML file as the dataclass `kind`.

    Args:
        overrides: `key=value` pairs put over the file; `section.key=value` reaches into a section, values are YAML.
    Raises:
        InputError: a broken file, an unknown or missing key, a value of another type; each named.
    """
    path = existing_file(path, "the configuration")
    found = _yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    found = {} if found is None else found
    for override in overrides:
        _override(found, override)
    return typing.cast(T, typed(kind, found, str(path)))


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _override(found: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"--set {override}: expected key=value")
    *sections, last = key.strip().split(".")
    for section in sections:
        if not isinstance(found.get(section), dict):
            found[section] = {}
        found = found[section]
    found[last] = _yaml(text, f"--set {override}")


def typed(kind: Any, found: Any, source: str, prefix: str = "") -> Any:
    """`found` as the dataclass `kind`; InputError, beginning with `source`, names what does not fit."""
    if not isinstance(found, dict):
        raise InputError(f"{source}: {prefix.rstrip('.') or 'the file'} must hold `key: value` lines, not {found!r}")
    hints = typing.get_type_hints(kind)
    unknown = [str(key) for key in found if key not in hints]
    if unknown:
        raise InputError(f"{source}: unknown key {prefix}{unknown[0]}; known here: {', '.join(hints)}")
    for one in dataclasses.fields(kind):
        if one.name not in found and one.default is one.default_factory is dataclasses.MISSING:
            raise InputError(f"{source}: missing key {prefix}{one.name}")
    return kind(**{key: _value(hints[key], value, source, f"{prefix}{key}") for key, value in found.items()})


def _value(hint: Any, value: Any, source: str, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _either(arguments, value, source, name)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{source}: {name} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin in (list, tuple):
        return _sequence(origin, arguments, value, source, name)
    if dataclasses.is_dataclass(hint):
        return typed(hint, value, source, f"{name}.")
    if hint is float and not isinstance(value, bool) and isinstance(value, int | str):
        try:
            return float(value)  # an integer, or 2e-5, which YAML reads as a string because it has no point
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        quote = (
            "; YAML reads a bare on, off, yes or no so: put it in quotes"
            if hint is str and isinstance(value, bool)
            else ""
        )
        raise InputError(f"{source}: {name} must be of type {hint.__name__}, not {value!r}{quote}")
    return value


def _either(arguments: tuple[Any, ...], value: Any, source: str, name: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [one for one in arguments if one is not type(None)]
    section = isinstance(value, dict)
    fitting = next((one for one in choices if dataclasses.is_dataclass(one) == section), choices[0])
    return _value(fitting, value, source, name)


def _sequence(origin: Any, arguments: tuple[Any, ...], value: Any, source: str, name: str) -> Any:
    if origin is list and isinstance(value, str):  # one item, as one types it on a command line
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"{source}: {name} must be a list, not {value!r}")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise InputError(f"{source}: {name} must have {len(arguments)} values, not {len(value)}")
        return tuple(_value(one, part, source, name) for one, part in zip(arguments, value, strict=True))
    return origin(_value(arguments[0], item, source, name) for item in value)
