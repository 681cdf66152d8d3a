"""Objects of a scene. Here: the types of arrays, and the colors of materials that do not follow an object's name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
RGB = tuple[float, float, float]
Vector = tuple[float, float, float]

METAL: RGB = (0.72, 0.72, 0.74)
STEEL: RGB = (0.52, 0.53, 0.56)
DARK: RGB = (0.10, 0.10, 0.11)
WOOD: RGB = (0.62, 0.42, 0.24)
CREAM: RGB = (0.94, 0.89, 0.76)
PAPER: RGB = (0.95, 0.94, 0.90)
LEAF: RGB = (0.14, 0.45, 0.13)
GLOW: RGB = (1.0, 0.80, 0.25)
GLASS: RGB = (0.55, 0.72, 0.82)
TERRACOTTA: RGB = (0.70, 0.36, 0.22)
CHERRY: RGB = (0.75, 0.05, 0.1)
BRASS: RGB = (0.72, 0.58, 0.25)
BEAK: RGB = (0.98, 0.60, 0.10)
ROOF: RGB = (0.33, 0.24, 0.20)
