"""Meshes of the user's own, with the licence that each must state.

A folder holds .obj or .stl files and one `assets.yaml` that lists them:

    - file: dragon.obj
      name: dragon
      licence: CC-BY-4.0, NAME OF THE AUTHOR
      scale: 0.001        # to metres; z is up in the file

Nothing is bundled. A mesh is drawn in one of the scene's colors, like every other object.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from ....utils.command import InputError
from ....utils.config import ListOf, build_config, config_class
from .catalog import CATEGORIES, COLORS, Category

Floats = NDArray[np.float64]

LIST = "assets.yaml"
SUFFIXES = (".obj", ".stl")
SIZES = (0.02, 0.25)  # radius of the footprint and height must be in this range, metres


@config_class
class _Entry:
    file: str
    name: str
    licence: str
    scale: float = 1.0
    colors: ListOf[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Asset:
    """One mesh and its measures at its scale: middle of the footprint and lowest height, half sizes, reach, height."""

    name: str
    licence: str
    suffix: str
    data: bytes
    scale: float
    colors: tuple[str, ...]
    origin: tuple[float, float, float]
    half: tuple[float, float]
    radius: float
    height: float


@lru_cache(maxsize=8)
def load_assets(folder: str) -> tuple[Asset, ...]:
    """The meshes that a folder lists; () without a folder. InputError names the file and what is wrong with it."""
    if not folder:
        return ()
    listing = Path(folder) / LIST
    if not listing.is_file():
        raise InputError(f"{listing} does not exist: it lists the meshes of objects.assets with name and licence")
    try:
        rows = yaml.safe_load(listing.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError as error:
        raise InputError(f"{listing} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{listing} must hold a list of meshes, each with file, name, licence and scale")
    assets = [_asset(row, Path(folder), f"{listing}, mesh {number}") for number, row in enumerate(rows, start=1)]
    names = [asset.name for asset in assets]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{listing}: the name {name!r} is used twice")
    return tuple(assets)


def asset_licences(folder: str) -> dict[str, dict[str, str]]:
    """What a data set records of the meshes it was made with: by name the licence and the hash of the file."""
    return {
        asset.name: {"licence": asset.licence, "sha256": hashlib.sha256(asset.data).hexdigest()}
        for asset in load_assets(folder)
    }


@lru_cache(maxsize=8)
def all_categories(folder: str) -> dict[str, Category]:
    """Every category by name: the catalog's and those of a folder of meshes."""
    result = dict(CATEGORIES)
    for number, asset in enumerate(load_assets(folder)):
        if asset.name in CATEGORIES:
            raise InputError(f"{Path(folder) / LIST}: the name {asset.name!r} is one of the catalog; choose another")
        x, y, z = asset.origin
        mesh = (number, (-x, -y, -z), asset.half, asset.height)
        result[asset.name] = Category((asset.radius, asset.radius), colors=asset.colors, mesh=mesh)
    return result


def _asset(row: object, folder: Path, where: str) -> Asset:
    if isinstance(row, dict) and not str(row.get("licence") or "").strip():
        raise InputError(
            f"{where} ({row.get('file')}): licence is missing; a mesh is used only with its licence stated"
        )
    entry = build_config(_Entry, row, where)
    for color in entry.colors:
        if color not in COLORS:
            raise InputError(f"{where}: colors has {color!r}; known: {', '.join(COLORS)}")
    if not entry.name.strip() or not entry.scale > 0:
        raise InputError(f"{where} ({entry.file}): name is what questions call it, and scale is above 0")
    path = folder / entry.file
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{where}: {entry.file} must be one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{where}: {path} does not exist")
    data = path.read_bytes()
    points = _vertices(data, suffix, str(path)) * entry.scale
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    radius = float(np.hypot(points[:, 0] - middle[0], points[:, 1] - middle[1]).max())
    half_x, half_y, height = ((high - low) / (2, 2, 1)).tolist()
    if not (SIZES[0] <= radius <= SIZES[1] and height <= 2 * SIZES[1]):
        raise InputError(
            f"{where}: {entry.name} is {2 * radius:.3g} m wide and {height:.3g} m high at scale {entry.scale}; the "
            f"width must be {2 * SIZES[0]} to {2 * SIZES[1]} m, so change scale"
        )
    origin = (float(middle[0]), float(middle[1]), float(low[2]))
    return Asset(
        entry.name,
        entry.licence,
        suffix,
        data,
        entry.scale,
        tuple(entry.colors),
        origin,
        (half_x, half_y),
        radius,
        height,
    )


def _vertices(data: bytes, suffix: str, path: str) -> Floats:
    """Where a mesh reaches in space, through MuJoCo's own reader, so that what it refuses is refused here."""
    from ..gl import mujoco

    xml = f"""<mujoco><asset><mesh name="m" file="m{suffix}" inertia="shell"/></asset>
    <worldbody><geom type="mesh" mesh="m"/></worldbody></mujoco>"""
    try:
        model = mujoco.MjModel.from_xml_string(xml, {f"m{suffix}": data})
    except ValueError as error:
        raise InputError(f"{path} is no mesh that MuJoCo can read: {' '.join(str(error).split())[:200]}") from None
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])
    points: Floats = model.mesh_vert @ rotation.reshape(3, 3).T + model.mesh_pos[0]
    return points
