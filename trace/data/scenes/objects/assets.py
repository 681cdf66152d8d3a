"""Meshes of the user's own, each with its licence: a folder of .obj or .stl files and an `assets.yaml` that lists them.

    - file: dragon.obj
      name: dragon
      licence: CC-BY-4.0, NAME OF THE AUTHOR
      scale: 0.001        # to metres; z is up in the file

Nothing is bundled. A mesh is drawn in one of the scene's colors, like every other object.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....utils.command import InputError
from ....utils.config import Field, ListOf, build_config, config_class, parse_yaml
from .catalog import CATEGORIES, COLORS, Category

LIST = "assets.yaml"
MIN_RADIUS, MAX_RADIUS = 0.02, 0.25  # of the footprint, metres; the height is at most twice the largest


@config_class
class AssetEntry:
    file: str = Field(pattern=r"(?i)\.(obj|stl)$")
    name: str = Field(pattern=r"\S")
    licence: str = Field(pattern=r"\S")
    scale: float = Field(1.0, gt=0)
    colors: ListOf[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Asset:
    name: str
    licence: str
    suffix: str
    data: bytes
    scale: float
    category: Category


@lru_cache(maxsize=8)
def load_assets(folder: str) -> tuple[Asset, ...]:
    """Read the meshes that a folder lists; () without a folder. InputError names the file and the mistake."""
    if not folder:
        return ()
    listing = Path(folder) / LIST
    if not listing.is_file():
        raise InputError(f"{listing} does not exist. It lists the meshes of objects.assets with name and licence")
    rows = parse_yaml(listing.read_text(encoding="utf-8", errors="replace"), str(listing))
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{listing} must hold a list of meshes, each with file, name, licence and scale")
    assets = [_load_asset(row, Path(folder), number) for number, row in enumerate(rows)]
    names = [*CATEGORIES, *(asset.name for asset in assets)]
    for asset in assets:
        if names.count(asset.name) > 1:
            raise InputError(f"{listing}: the name {asset.name!r} is used twice or in the catalog. Choose another")
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
    return CATEGORIES | {asset.name: asset.category for asset in load_assets(folder)}


def _load_asset(row: object, folder: Path, number: int) -> Asset:
    source = f"{folder / LIST}, mesh {number + 1}"
    entry = build_config(AssetEntry, row, source)
    for color in entry.colors:
        if color not in COLORS:
            raise InputError(f"{source}: colors has {color!r}; known: {', '.join(COLORS)}")
    path = folder / entry.file
    if not path.is_file():
        raise InputError(f"{source}: {path} does not exist")
    data, suffix = path.read_bytes(), path.suffix.lower()
    points = _vertices(data, suffix, path) * entry.scale
    low, high = points.min(0), points.max(0)
    x, y = ((low + high) / 2).tolist()[:2]
    radius = float(np.hypot(points[:, 0] - x, points[:, 1] - y).max())
    half_x, half_y, height = ((high - low) / (2, 2, 1)).tolist()
    if not (MIN_RADIUS <= radius <= MAX_RADIUS and height <= 2 * MAX_RADIUS):
        raise InputError(
            f"{source}: {entry.name} is {2 * radius:.3g} m wide and {height:.3g} m high at scale {entry.scale}. The "
            f"width must be {2 * MIN_RADIUS} to {2 * MAX_RADIUS} m: change scale"
        )
    mesh = (number, (-x, -y, -float(low[2])), (half_x, half_y), height)
    category = Category((radius, radius), colors=tuple(entry.colors), mesh=mesh)
    return Asset(entry.name, entry.licence, suffix, data, entry.scale, category)


def _vertices(data: bytes, suffix: str, path: Path) -> NDArray[np.float64]:
    """Read the vertices [n, 3] through MuJoCo's own reader, so that what it refuses is refused here."""
    from ..gl import mujoco

    xml = f"""<mujoco><asset><mesh name="m" file="m{suffix}" inertia="shell"/></asset>
    <worldbody><geom type="mesh" mesh="m"/></worldbody></mujoco>"""
    try:
        model = mujoco.MjModel.from_xml_string(xml, {f"m{suffix}": data})
    except ValueError as error:
        raise InputError(f"{path} is no mesh that MuJoCo can read: {' '.join(str(error).split())[:200]}") from None
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])
    points: NDArray[np.float64] = model.mesh_vert @ rotation.reshape(3, 3).T + model.mesh_pos[0]
    return points
