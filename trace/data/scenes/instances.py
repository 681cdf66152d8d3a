"""The values of an instance map, which says for every pixel of a view what it shows: one table for all who read one.

0 is the background (floor, walls, furniture on which nothing stands), 1 the first surface of a room (of a table scene
the table), from 2 on the objects in their order, from 200 on the further surfaces of a room.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BACKGROUND, FIRST_SURFACE, FIRST_OBJECT, MORE_SURFACES = 0, 1, 2, 200


def surface_instance(number: int) -> int:
    """The value of surface `number` of a room."""
    return FIRST_SURFACE if number == 0 else MORE_SURFACES + number - 1


def on_object(values: NDArray[Any] | int) -> NDArray[np.bool_]:
    """Where values of an instance map are those of objects."""
    array = np.asarray(values)
    return (array >= FIRST_OBJECT) & (array < MORE_SURFACES)


def on_surface(values: NDArray[Any] | int) -> NDArray[np.bool_]:
    """Where values of an instance map are those of surfaces, on which things stand and free places lie."""
    array = np.asarray(values)
    return (array == FIRST_SURFACE) | (array >= MORE_SURFACES)
