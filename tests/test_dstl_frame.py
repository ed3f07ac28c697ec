"""The frame of the contest's labels, and a tile's four files as one scene in it."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.errors import BandError, GridError, InputError, UsageError
from satseg.specs import sensor_spec
from satseg.tasks.dstl.facts import BANDS, PRODUCTS
from satseg.tasks.dstl.folder import ContestFolder
from satseg.tasks.dstl.frame import Frame
from tests.contests import COUNTS, IDS, SIZES, build_contest, write_tiff

PAPER = Frame(3396, 3349, 0.009169, -0.00904)


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    return ContestFolder.open(build_contest(tmp_path_factory.mktemp("contest"), IDS[:1]))


def test_the_official_scaling_has_the_values_worked_by_hand():
    # shared facts 6.3-M8
    assert PAPER.label_width == pytest.approx(3395.000294377, abs=1e-9)
    assert PAPER.label_height == pytest.approx(3348.000298507, abs=1e-9)
    assert 1 / PAPER.steps("label")[0] == pytest.approx(370269.41808, abs=1e-5)
    assert 1 / PAPER.steps("label")[1] == pytest.approx(-370354.01532, abs=1e-5)
    assert PAPER.pixel == pytest.approx((2.700736143e-6, 2.700119234e-6), rel=1e-9)
    box = PAPER.moved(np.array([shapely.box(100, 200, 110, 220)]), source="pixels", target="label")[0]
    assert box.bounds == pytest.approx((0.0002700736143, -0.0005940262314, 0.0002970809757, -0.0005400238467), rel=1e-9)
    assert box.area == pytest.approx(1.458461921e-9, rel=1e-9)


def test_width_less_one_differs_by_less_than_a_thousandth_of_a_pixel():
    other = Frame(3396, 3349, 0.009169, -0.00904, "minus_one")
    rows, cols = other.rowcol(xs=[0.009169], ys=[-0.00904])
    assert (rows[0], cols[0]) == pytest.approx((3348, 3395), abs=1e-9)
    rows, cols = PAPER.rowcol(xs=[0.009169], ys=[-0.00904])
    assert abs(cols[0] - 3395) < 1e-3
    assert abs(rows[0] - 3348) < 1e-3


@settings(max_examples=50)
@given(
    width=st.integers(2, 4000), ratio=st.floats(0.5, 2), pixel=st.floats(1e-7, 1e-4), square=st.floats(0.97, 1.03),
    scaling=st.sampled_from(["official", "minus_one"]), units=st.sampled_from(["label", "metres"]), data=st.data(),
)  # fmt: skip
def test_a_pixel_comes_back_from_the_frame(width, ratio, pixel, square, scaling, units, data):
    height = max(2, round(width * ratio))
    count = (lambda n: n * n / (n + 1)) if scaling == "official" else (lambda n: n - 1)
    frame = Frame(width, height, pixel * count(width), -pixel * square * count(height), scaling)
    col, row = data.draw(st.floats(-1, width + 1)), data.draw(st.floats(-1, height + 1))
    xs, ys = frame.xy(rows=[row], cols=[col])
    rows, cols = frame.rowcol(xs=xs, ys=ys)
    assert abs(rows[0] - row) <= 1e-6
    assert abs(cols[0] - col) <= 1e-6
    point = np.array([shapely.Point(col, row)], dtype=object)
    there = frame.moved(point, source="pixels", target=units)
    back = frame.moved(there, source=units, target="pixels")[0]
    assert abs(back.x - col) <= 1e-6
    assert abs(back.y - row) <= 1e-6
    own = frame.grid(height=height, width=width).rowcol(xs=xs, ys=ys)
    assert np.allclose(own, [rows, cols], atol=1e-6)


def test_metres_are_pixels_of_31_cm_and_areas_follow():
    box = np.array([shapely.box(100, 200, 110, 220)])
    metres = PAPER.moved(box, source="pixels", target="metres")[0]
    assert metres.area == pytest.approx(200 * 0.31**2)
    label = PAPER.moved(box, source="pixels", target="label")[0]
    assert PAPER.area_m2(label.area) == pytest.approx(metres.area)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((100, 100, -0.009, -0.009), "E-GRID-301"),
        ((100, 100, 0.009, 0.009), "E-GRID-301"),
        ((100, 100, float("nan"), -0.009), "E-GRID-301"),
        ((0, 100, 0.009, -0.009), "E-GRID-301"),
        ((100, 200, 0.009, -0.009), "E-GRID-302"),
    ],
)
def test_an_extent_that_is_none_is_refused(numbers, code):
    with pytest.raises(GridError) as caught:
        Frame(*numbers)
    assert caught.value.code == code
    assert caught.value.hint


def test_the_four_files_are_one_scene_of_20_bands_on_the_three_band_grid(contest):
    tile = contest.tile(IDS[0])
    scene = tile.scene()
    assert scene.bands == sensor_spec("dstl_worldview3").band_names
    assert len(scene.bands) == 20
    assert scene.grid.shape == SIZES["rgb"]
    assert scene.grid.crs is None
    frame = tile.frame()
    assert scene.grid == frame.grid(height=frame.height, width=frame.width)
    for source in scene.sources:
        assert source.grid.bounds == pytest.approx(scene.grid.bounds), "outer edges meet"
    read = scene.read()
    assert read.data.shape == (20, *SIZES["rgb"])
    assert read.valid.all()


def test_a_window_of_the_scene_equals_the_crop_of_the_whole(contest):
    scene = contest.tile(IDS[0]).scene()
    whole = scene.read().data
    part = scene.read(window=Window(31, 17, 40, 23)).data
    assert np.array_equal(part, whole[:, 17:40, 31:71])


def test_products_can_be_chosen_and_units_too(contest):
    tile = contest.tile(IDS[0])
    scene = tile.scene(products=("M",), units="metres")
    assert scene.bands == BANDS["M"]
    assert scene.grid.shape == SIZES["rgb"]
    assert scene.grid.resolution == pytest.approx((0.31, 0.31))
    assert tile.scene(units="pixels").grid.transform.is_identity
    for products in ((), ("M", "M")):
        with pytest.raises(UsageError):
            tile.scene(products=products)


def test_coarse_pixels_lie_where_their_ground_is(tmp_path):
    # A quarter of M is bright; so is that quarter of the scene, to half a coarse pixel, on ratios that are no integers.
    build_contest(tmp_path, IDS[:1])
    data = np.full((8, *SIZES["M"]), 100, np.uint16)
    data[:, :12, 12:] = 2000
    write_tiff(tmp_path / "sixteen_band" / f"{IDS[0]}_M.tif", data)
    band = ContestFolder.open(tmp_path).tile(IDS[0]).scene(products=("M",)).read().data[0]
    truth = np.zeros(SIZES["rgb"], bool)
    truth[:48, 49:] = True  # 96 rows and 97 columns: the middle is at row 48 and column 48.5
    near = np.zeros_like(truth)
    near[45:51], near[:, 46:52] = True, True
    assert np.array_equal((band > 1050)[~near], truth[~near])


def test_a_pan_file_of_a_pixel_more_lies_on_the_same_ground(tmp_path):
    build_contest(tmp_path, IDS[:1])
    write_tiff(tmp_path / "sixteen_band" / f"{IDS[0]}_P.tif", np.full((1, 97, 98), 500, np.uint16))
    scene = ContestFolder.open(tmp_path).tile(IDS[0]).scene()
    assert scene.grid.shape == SIZES["rgb"]
    assert np.allclose(scene.select(["pan"]).read().data, 500)


@pytest.mark.parametrize(
    ("product", "shape", "dtype", "kind", "code"),
    [
        ("M", (8, 24, 12), np.uint16, GridError, "E-GRID-303"),
        ("A", (8, 300, 303), np.uint16, GridError, "E-GRID-303"),
        ("M", (7, 24, 24), np.uint16, BandError, "E-BAND-301"),
        ("M", (8, 24, 24), np.uint8, BandError, "E-BAND-302"),
        ("A", (8, 4, 4), np.float32, BandError, "E-BAND-302"),
        ("P", None, None, InputError, "E-IN-311"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, product, shape, dtype, kind, code):
    build_contest(tmp_path, IDS[:1])
    path = tmp_path / "sixteen_band" / f"{IDS[0]}_{product}.tif"
    path.unlink()
    if shape:
        write_tiff(path, np.ones(shape, dtype))
    tile = ContestFolder.open(tmp_path).tile(IDS[0])
    with pytest.raises(kind, match=path.name) as caught:
        tile.scene()
    assert caught.value.code == code
    rest = tuple(p for p in PRODUCTS if p != product)
    assert len(tile.scene(products=rest).bands) == sum(COUNTS[p] for p in rest), "the others can be used"


def test_an_extent_of_another_tile_is_refused_with_the_file(tmp_path):
    build_contest(tmp_path, IDS[:1])
    (tmp_path / "grid_sizes.csv").write_text(f",Xmax,Ymin\n{IDS[0]},0.0090,-0.0045\n")
    with pytest.raises(GridError, match=r"6010_1_2.*grid_sizes"):
        ContestFolder.open(tmp_path).tile(IDS[0]).frame()
