"""What a robot needs: depth map, instance map, pose and boxes of a view tell one story, and masks are as they say.

Here nothing is worked out from rays and planes: every pixel is lifted to the point that the depth map says it shows.
So a mask is checked pixel by pixel against what is really in sight there, on and inside objects too.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from rendering import needs_gl
from scene_geometry import Array, axes, depth_inside, hits_box
from scene_questions import TOLERANCE, Looked, of_kind, related, standing

NEAR = 2e-3  # metres: depth is in whole millimetres

pytestmark = needs_gl


def views(looked: list[Looked]) -> list[Looked]:
    """One question of each view."""
    return list({one.meta["view"]: one for one in looked}.values())


def beyond(points: Array, box: dict[str, Any]) -> Array:
    """How far points [n, 3] are outside of a turned box; negative inside."""
    offset = points - np.array(box["center"])
    local = np.concatenate([offset[:, :2] @ axes(box["yaw"]).T, offset[:, 2:]], 1)
    return (np.abs(local) - np.array(box["half_size"])).max(1)


def test_surfaces_lie_where_the_depth_map_shows_them(looked: list[Looked]) -> None:
    for one in views(looked):
        instances, points = one.instances, one.lifted()
        for surface in one.view["surfaces"]:
            seen = points[instances == surface["instance"]]
            top, inside = surface["center"][2], depth_inside(seen[:, :2], surface)
            assert seen[:, 2].max(initial=top) < top + NEAR and inside.min(initial=0) > -NEAR, one.where
            assert (np.abs(seen[inside > 0.02, 2] - top) < NEAR).mean() > 0.999 if (inside > 0.02).any() else True


def test_objects_lie_in_their_boxes(looked: list[Looked]) -> None:
    for one in views(looked):
        instances, points = one.instances, one.lifted()
        for item in one.objects.values():
            seen = points[instances == item["instance"]]
            if len(seen):
                assert beyond(seen, item["box3d"]).max() < 0.004, (one.view["view"], item["name"])
