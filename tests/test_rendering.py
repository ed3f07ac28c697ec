"""What generated scenes are made of: spectra, area coverage, noise, the street frame."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from satseg.grid import Grid
from satseg.synthetic.layout import LAYERS, StreetFrame, Vehicle, rectangle
from satseg.synthetic.rendering import SAMPLES, coverage, power_noise
from satseg.synthetic.spectra import BANDS, HAZE, MATERIALS, SKYLIGHT, VISIBLE, mixed_reflectance

VEGETATION = ("grass", "lawn", "broadleaf", "light_broadleaf", "conifer", "wheat", "maize", "beet")
FRAME = StreetFrame(200, 150, 0.7, (17.0, 380.0, 1.0), (9.0, 300.0, 2.0))


@given(dry=st.floats(0, 1), shade=st.floats(0.5, 1.5))
def test_turf_has_the_lawns_colour_however_dry_and_bright(dry, shade):
    turf, lawn = (mixed_reflectance(name, dry=dry, shade=shade) for name in ("artificial_turf", "lawn"))
    assert np.array_equal(turf[VISIBLE], lawn[VISIBLE])
    assert (turf[VISIBLE.stop :] < 0.75 * lawn[VISIBLE.stop :]).all()


def test_spectra_are_reflectances_with_the_shapes_of_their_kind():
    for name in MATERIALS:
        assert len(MATERIALS[name].reflectance) == len(BANDS)
        assert 0 < mixed_reflectance(name).min() <= mixed_reflectance(name).max() < 0.7
    for name in VEGETATION:
        spectrum = dict(zip(BANDS, mixed_reflectance(name), strict=True))
        assert spectrum["nir1"] > 4 * spectrum["red"]
        assert spectrum["green"] > max(spectrum["blue"], spectrum["red"])
    for name in ("river", "deep_water", "pool"):
        assert (np.diff(mixed_reflectance(name)[2:]) < 0).all()
    assert (np.diff(HAZE) < 0).all()
    assert (np.diff(SKYLIGHT) < 0).all()


def assert_covers_area(grid: Grid, cover: np.ndarray, seen: shapely.Polygon) -> None:
    """Assert that `cover` adds up to the area of a convex shape, as near as its samples can tell.

    Samples lie h = GSD / 3 apart. In a column of them, n lie in a chord of length f, and h n is at most h off f; the
    columns that meet a shape of width w number at most w / h + 1: h (w + h) in all. The sum of h f over the columns
    is off the area by h / 2 times the variation of f, which rises once and falls once: h times the longest chord,
    at most the height. Sides along the axes come near it: each may miss its samples by half of h all along.
    """
    left, bottom, right, top = seen.bounds
    step = grid.transform.a / SAMPLES
    most = step * (right - left + top - bottom + step)
    assert cover.sum() * grid.transform.a**2 == pytest.approx(seen.area, abs=most)


def samples_inside(grid: Grid, shape: shapely.Polygon) -> tuple[np.ndarray, np.ndarray]:
    """How many of each pixel's samples lie in `shape` (H, W), and where none is within rounding of its outline."""
    fine = grid.zoom(1 / SAMPLES)
    x, y = fine.transform @ np.meshgrid(np.arange(fine.width) + 0.5, np.arange(fine.height) + 0.5)
    blocks = (grid.height, SAMPLES, grid.width, SAMPLES)
    away = shapely.distance(shape.exterior, shapely.points(x, y)) > 1e-9
    return shapely.contains_xy(shape, x, y).reshape(blocks).sum((1, 3)), away.reshape(blocks).all((1, 3))


@settings(deadline=None, max_examples=25)
@given(
    x=st.floats(4, 20),
    y=st.floats(4, 12),
    length=st.floats(3, 7),
    width=st.floats(2, 7),
    angle=st.floats(0, 6.3),
)
@example(x=4, y=4, length=3.484375, width=3.484375, angle=0)  # all four sides just miss a line of samples
def test_coverage_sums_to_the_area_of_a_shape(x, y, length, width, angle):
    grid = Grid(31, 47, Affine(0.5, 0, 0, 0, -0.5, 15.5))
    shape = rectangle(x, y, length=length, width=width, angle=angle)
    cover, owner = coverage(grid, [(shape, 7)])
    assert cover.min() >= 0
    assert cover.max() <= 1
    assert set(np.unique(owner)) <= {0, 7}
    assert_covers_area(grid, cover, shape.intersection(grid.footprint()))
    inside, sure = samples_inside(grid, shape)
    np.testing.assert_array_equal(np.round(cover * SAMPLES**2)[sure], inside[sure])
    centres = rasterize([shape], out_shape=grid.shape, transform=grid.transform, dtype="uint8") > 0
    assert (cover[centres] > 0).all()


def test_the_later_shape_owns_what_two_cover():
    grid = Grid(5, 9, Affine(1, 0, 0, 0, -1, 5))
    _, owner = coverage(grid, [(shapely.box(0, 0, 6, 5), 1), (shapely.box(3, 0, 9, 5), 2)])
    assert (owner[:, :3] == 1).all()
    assert (owner[:, 3:] == 2).all()


@pytest.mark.parametrize(("height", "width"), [(33, 70), (128, 1), (1, 97)])
def test_noise_has_the_shape_asked_for_and_unit_spread(height, width):
    field = power_noise(np.random.default_rng(0), height, width, scale_px=4.0, slope=1.0)
    assert field.shape == (height, width)
    assert field.dtype == np.float32
    assert np.isfinite(field).all()
    assert 0.3 < np.sqrt((field**2).mean()) < 2.5


@given(s=st.floats(-300, 300), t=st.floats(-300, 300))
def test_cells_of_the_street_frame_are_valid_and_only_share_edges(s, t):
    here, ahead = FRAME.box((s, s + 60), (t, t + 50)), FRAME.box((s + 60, s + 120), (t, t + 50))
    left = FRAME.box((s, s + 60), (t + 50, t + 100))
    assert here.is_valid
    assert here.exterior.is_ccw
    assert here.intersection(ahead).area < 0.5
    assert here.intersection(left).area < 0.5


@given(s=st.floats(-300, 300), t=st.floats(-300, 300))
def test_heading_points_along_the_streets(s, t):
    (x0, y0), (x1, y1) = FRAME.at(s, t), FRAME.at(s + 0.01, t)
    assert np.cos(np.arctan2(y1 - y0, x1 - x0) - FRAME.heading(s, t)) > 0.9999


def test_a_vehicle_is_a_body_with_dark_windows_inside_it():
    body, *windows = Vehicle(3.0, 4.0, 0.4, 4.5, 1.9, "white_car").patches()
    assert body.label == "vehicle"
    assert windows
    assert all(pane.label is None and body.outline.contains(pane.outline) for pane in windows)
    assert all(patch.layer in LAYERS and patch.material in MATERIALS for patch in (body, *windows))
