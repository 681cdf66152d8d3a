"""The catalog: what every category must be, whatever it looks like. No rendering."""

import math

import numpy as np
import pytest

from trace_vlm.data.scenes.objects.catalog import CATEGORIES, COLORS, make_body, slenderness
from trace_vlm.data.scenes.objects.primitives import BANDS, LATHE_FACES, SIDES, lathe_arrays, outline
from trace_vlm.data.scenes.render import MAX_LATHES, MAX_PARTS
from trace_vlm.data.scenes.world.surfaces import supports_of

RGB = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", [name for name, category in CATEGORIES.items() if category.sculpt])
def test_measures_are_those_of_the_parts(name):
    category = CATEGORIES[name]
    for shape in (0.0, 0.37, 1.0):
        radius = category.radius[0] + shape * (category.radius[1] - category.radius[0])
        body = make_body(name, category, "red", RGB, radius, 0.0, shape, (0.3, -0.2), 1.0)
        points = np.concatenate([outline(part) for part in body.parts])
        low, high = points.min(0), points.max(0)
        assert low[2] == pytest.approx(0, abs=1e-9) and high[2] == pytest.approx(body.height)
        assert np.hypot(points[:, 0], points[:, 1]).max() == pytest.approx(radius)
        assert np.abs(low[:2] + high[:2]).max() < 1e-9, "the footprint's middle is not the origin"
        if body.half is not None:
            assert np.abs(points[:, :2]).max(0) == pytest.approx(body.half)
            assert 4 * body.half[0] * body.half[1] < math.pi * radius**2
        lathes = sum(part.shape == "lathe" for part in body.parts)
        assert lathes <= MAX_LATHES and len(body.parts) - lathes <= MAX_PARTS
        for support in supports_of([body], ()):
            assert 0 < support.center[2] <= body.height + 1e-9 and max(support.half) <= radius
        if shape == 0.37:
            assert 0.7 < slenderness(category) * radius / body.height < 1.4
    assert all(color in COLORS for color in category.colors)


def test_a_footprint_s_distance_and_extent_agree_with_its_corners():
    body = make_body("book", CATEGORIES["book"], "red", RGB, 0.12, 0.0, 0.5, (0.2, 0.1), 0.7)
    cos, sin, rng = math.cos(0.7), math.sin(0.7), np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), -1).reshape(-1, 2) * body.half
    points = grid @ [[cos, sin], [-sin, cos]] + body.position
    for angle in rng.uniform(0, 2 * math.pi, 20):
        direction = np.array([math.cos(angle), math.sin(angle)])
        assert float(body.extent(direction)) == pytest.approx(((points - body.position) @ direction).max())
    for point in rng.uniform(-0.5, 0.5, (40, 2)):
        assert float(body.distance(point)) == pytest.approx(np.hypot(*(points - point).T).min(), abs=2e-3)


def test_lathe_arrays_describe_the_turned_profile():
    vertices, normals = lathe_arrays(((0.0, 0.0), (1.0, 0.0), (1.0, 2.0), (0.0, 2.0)), (0.5, 0.5, 0.25))
    assert len(vertices) == len(normals) == 2 * BANDS * SIDES and LATHE_FACES.max() == len(vertices) - 1
    assert vertices[:, 2].max() == pytest.approx(0.5) and np.hypot(*vertices[:, :2].T).max() == pytest.approx(0.5)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1.0)
    wall = (np.abs(vertices[:, 2] - 0.25) < 0.26) & (np.abs(normals[:, 2]) < 0.5)
    assert (np.einsum("ij,ij->i", vertices[wall, :2], normals[wall, :2]) > 0).all(), "the wall faces inwards"
    a, b, c = vertices[LATHE_FACES].transpose(1, 0, 2)
    facing = np.einsum("ij,ij->i", np.cross(b - a, c - a), normals[LATHE_FACES[:, 0]])
    assert facing.min() > -1e-9, "a face is wound against its normal"
