"""Registration: planted shifts come back to a tenth of a pixel, and what cannot be registered stays and says so."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from satseg.errors import UsageError
from satseg.grid import Grid
from satseg.imagery.alignment import Motion
from satseg.imagery.registered_picture import registered_picture
from satseg.imagery.registration import registered
from satseg.imagery.scene import open_scene
from satseg.tasks.dstl.facts import GSD_M
from satseg.tasks.dstl.generated.contest import make_tile
from tests.factories import ORIGIN, UTM, noise, north_up, rotated, write_tiff
from tests.lands import SHIFT, ground, only, pair


def is_left(scene, paths, word):
    """Whether the second file stays where it is, and a warning with `word` says so."""
    found, plain = only(scene), open_scene(paths)
    return (
        not found.accepted and not found.is_moved and word in found.reason
        and [source.grid for source in scene.sources] == [source.grid for source in plain.sources]
        and any(word in text and "not registered" in text for text in scene.warnings)
    )  # fmt: skip


def noisy(data):
    return data + np.random.default_rng(5).normal(0, 40, data.shape)


def with_hole(data):
    data = data.copy()
    data[:, : data.shape[1] // 3, : data.shape[2] // 2] = 0
    return data


def veiled(data):
    """One inverted band with a texture of its own, and noise: not to be placed exactly, like infrared."""
    own = ground(*data.shape[1:], seed=9)[:1]
    return noisy(1700 - data[:1] + 0.4 * own)


CHANGES = {
    "the same response": lambda data: data,
    "inverted": lambda data: 1700 - data,
    "one band of another response": lambda data: 1700 - data[:1] ** 0.7,
    "14 bit against 11": lambda data: data * 8,
    "one byte": lambda data: np.clip(data / 6, 1, 255).astype("uint8"),
    "noise": noisy,
    "nodata": with_hole,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_planted_shift_is_recovered_within_a_tenth_of_a_pixel(tmp_path, change):
    found = only(open_scene(pair(tmp_path, change=CHANGES[change], nodata=0), register=True))
    assert found.accepted
    assert (found.rows, found.cols) == pytest.approx(SHIFT, abs=0.1)
    assert (found.scene_rows, found.scene_cols) == pytest.approx((found.rows, found.cols))
    assert (found.east_m, found.north_m) == pytest.approx((found.cols, -found.rows), rel=0.01)
    assert 0 <= found.error < 0.1


@pytest.mark.parametrize(
    ("ratio", "sides", "change"),
    [(4.0, (530, 620), "inverted"), (4.13, (430, 490), "the same response"), (24.2, (1000, 1150), "inverted")],
)
def test_pixels_many_times_as_coarse_are_laid_right_to_a_tenth_of_theirs(tmp_path, ratio, sides, change):
    found = only(open_scene(pair(tmp_path, ratio=ratio, sides=sides, change=CHANGES[change]), register=True))
    assert found.accepted
    assert (found.rows, found.cols) == pytest.approx(SHIFT, abs=0.1)
    assert found.scene_rows == pytest.approx(found.rows * ratio)


@pytest.mark.parametrize(("ratio", "sides"), [(4.13, (430, 490)), (24.2, (1000, 1150))])
def test_what_cannot_be_placed_exactly_is_off_by_no_more_than_its_error_tells(tmp_path, ratio, sides):
    found = only(open_scene(pair(tmp_path, ratio=ratio, sides=sides, change=veiled), register=True))
    assert found.accepted
    assert f"{found.error:.2f} px" in str(found)
    assert 0 < np.hypot(found.rows - SHIFT[0], found.cols - SHIFT[1]) <= 3 * found.error


def test_errors_told_of_a_generated_tile_hold_for_what_all_windows_share(tmp_path):
    made = make_tile("6080_4_1", size=(600, 610))  # one light: shadows pull all windows the same way
    wide = made.images.rgb.shape[2]
    paths = []
    for name, data in (("rgb", made.images.rgb), ("M", made.images.multi)):
        shape = [GSD_M * whole / part for whole, part in zip(made.images.rgb.shape[1:], data.shape[1:], strict=True)]
        place = Affine(shape[1], 0, ORIGIN[0], 0, -shape[0], ORIGIN[1])
        paths.append(write_tiff(tmp_path / f"{name}.tif", data, transform=place))
    found = only(open_scene(paths, register=True))
    per_px = made.images.multi.shape[2] / wide
    off = np.hypot(found.rows - made.shifts["M"][1] * per_px, found.cols - made.shifts["M"][0] * per_px)
    assert 0 < off <= 3 * found.error
    assert off < 0.03


@pytest.mark.parametrize(("place", "crs"), [(rotated(25, 1.0), UTM), (north_up(1.0), None)])
def test_grids_may_be_turned_and_without_crs(tmp_path, place, crs):
    found = only(open_scene(pair(tmp_path, ratio=2.0, place=place, crs=crs), register=True))
    assert (found.rows, found.cols) == pytest.approx(SHIFT, abs=0.1)
    assert (found.east_m is None) == (crs is None)


@settings(max_examples=3, deadline=None)
@given(st.floats(-6, 6), st.floats(-6, 6), st.integers(290, 350), st.integers(290, 350))
def test_any_shift_within_reach_is_recovered(tmp_path_factory, rows, cols, height, width):
    paths = pair(tmp_path_factory.mktemp("any"), ratio=1.5, shift=(rows, cols), sides=(height, width))
    found = only(open_scene(paths, register=True))
    assert (found.rows, found.cols) == pytest.approx((rows, cols), abs=0.1)


def test_a_registered_scene_is_read_as_if_it_had_always_lain_so(tmp_path):
    paths = pair(tmp_path, ratio=3.3, sides=(330, 390))
    scene = open_scene(paths, register=True)
    whole = scene.read()
    for window in (Window(0, 0, 70, 40), Window(131, 57, 93, 111), Window(360, 300, 60, 60)):
        part = scene.reader().read(window)
        inner = part.data[:, : max(0, 330 - window.row_off), : max(0, 390 - window.col_off)]
        rows, cols = (slice(window.row_off, window.row_off + inner.shape[1]),
                      slice(window.col_off, window.col_off + inner.shape[2]))  # fmt: skip
        assert np.array_equal(whole.data[:, rows, cols], inner)
    assert scene.grid == open_scene(paths).grid
    again = pickle.loads(pickle.dumps(scene))
    assert again == scene
    assert np.array_equal(again.read().data, whole.data)
    assert scene.info()["registrations"][0]["rows"] == only(scene).rows
    assert "px of its own off" in scene._repr_html_()
    assert open_scene(paths, register=True) == scene


def test_registering_again_what_lies_right_finds_nothing(tmp_path):
    paths = pair(tmp_path, ratio=3.3)
    grid = open_scene(paths, register=True).sources[-1].grid
    with rasterio.open(paths[1], "r+") as file:
        file.transform = grid.transform
    found = only(open_scene(paths, register=True))
    assert np.hypot(found.rows, found.cols) < 0.02


@pytest.fixture(scope="module")
def twice_as_coarse(tmp_path_factory):
    """A scene of two products, and the same registered as it was opened."""
    paths = pair(tmp_path_factory.mktemp("twice"), ratio=2.0)
    return open_scene(paths), open_scene(paths, register=True)


@pytest.mark.parametrize(
    "change",
    [lambda scene: scene.at_gsd(4.7), lambda scene: scene.on_grid(scene.grid.crop(Window(31, 17, 205, 190))),
     lambda scene: scene.with_indices("ndvi", bands={"nir": "b1", "red": "b2"})],
)  # fmt: skip
def test_what_is_found_does_not_depend_on_the_grid_that_a_scene_is_read_on(twice_as_coarse, change):
    scene, opened = twice_as_coarse
    assert registered(change(scene)) == change(opened)


def test_a_registered_scene_is_registered_already(twice_as_coarse):
    scene, opened = twice_as_coarse
    assert registered(scene) == registered(opened) == opened


def test_files_of_one_grid_that_lie_right_keep_their_pixels(tmp_path):
    paths = pair(tmp_path, shift=(0.0, 0.0))
    scene = open_scene(paths, register=True)
    assert only(scene).accepted
    assert not only(scene).is_moved
    assert scene.dtype == np.uint16


def test_files_of_one_grid_move_together(tmp_path):
    fine, coarse = pair(tmp_path, ratio=2.0)
    with rasterio.open(coarse) as file:
        data, place = file.read(), file.transform
    parts = [write_tiff(tmp_path / f"c{k}.tif", data[k], transform=place) for k in range(3)]
    scene = open_scene([fine, *parts], register=True)
    assert len(only(scene).paths) == 3
    assert len({source.grid for source in scene.sources[3:]}) == 1
    assert (only(scene).rows, only(scene).cols) == pytest.approx(SHIFT, abs=0.1)


@pytest.mark.parametrize("turn", [0.4, -0.2])
def test_a_turn_is_found_where_it_is_looked_for(tmp_path, turn):
    paths = pair(tmp_path, ratio=2.0, sides=(430, 490), shift=(0.0, 0.0))
    with rasterio.open(paths[1], "r+") as file:
        grid = Grid(file.height, file.width, file.transform, file.crs)
        file.transform = Motion(-SHIFT[0], -SHIFT[1], np.radians(-turn)).undone(grid).transform
    found = only(open_scene(paths, register="euclidean"))
    assert found.turn_deg == pytest.approx(turn, abs=0.02)
    assert (found.rows, found.cols) == pytest.approx(SHIFT, abs=0.1)


@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(-0.3, 0.3), st.floats(0.2, 40), st.floats(-180, 180))
def test_undoing_a_motion_changes_no_length_and_no_angle(rows, cols, turn, gsd, angle):
    grid = Grid(31, 77, rotated(angle, gsd), None)
    a, b = grid.transform, Motion(rows, cols, turn).undone(grid).transform
    old, new = (np.array([[t.a, t.b], [t.d, t.e]]) for t in (a, b))
    assert new.T @ new == pytest.approx(old.T @ old, rel=1e-9, abs=1e-9 * gsd**2)


def flat(data):
    return np.full_like(data, 500)


def strange(data):
    return ground(*data.shape[1:], seed=9)


def empty(data):
    return np.zeros_like(data)


@pytest.mark.parametrize(("change", "word"), [(flat, "fewer"), (empty, "fewer"), (strange, "clearly")])
def test_what_shows_nothing_of_the_other_product_stays(tmp_path, change, word):
    paths = pair(tmp_path, ratio=2.0, change=change, nodata=0)
    assert is_left(open_scene(paths, register=True), paths, word)


@pytest.mark.parametrize("seed", range(3))
def test_unrelated_noise_stays(tmp_path, seed):
    paths = [
        write_tiff(tmp_path / "a.tif", noise(2, 300, 340, seed=seed), transform=north_up(1.0)),
        write_tiff(tmp_path / "b.tif", noise(1, 150, 171, seed=seed + 50), transform=north_up(2.0)),
    ]
    assert is_left(open_scene(paths, register=True), paths, "clearly")


def test_a_shift_beyond_the_reach_stays(tmp_path):
    paths = pair(tmp_path, ratio=2.0, shift=(0.0, 0.0), sides=(400, 500))
    with rasterio.open(paths[1], "r+") as file:
        file.transform = north_up(2.0, x=ORIGIN[0] + 90)
    assert is_left(open_scene(paths, register=True), paths, "px")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (13, 14), (200, 31)])
def test_a_product_of_few_pixels_stays_and_says_how_many_it_takes(tmp_path, height, width):
    paths = [
        write_tiff(tmp_path / "a.tif", noise(1, 500, 520), transform=north_up(1.0)),
        write_tiff(tmp_path / "b.tif", noise(1, height, width), transform=north_up(100.0 if height == 1 else 8.0)),
    ]
    scene = open_scene(paths, register=True)
    assert is_left(scene, paths, f"{height} x {width} px are too few to find a place by, 32 a side are needed")
    told = scene.info()["registrations"][0]
    assert (told["accepted"], told["rows"], told["cols"], told["error"]) == (False, 0.0, 0.0, None)
    assert "not registered" in scene._repr_html_()


def test_lines_break_less_at_the_squares_of_the_picture_once_registered(tmp_path):
    paths = pair(tmp_path, ratio=2.0, sides=(270, 331))
    plain, moved = open_scene(paths), open_scene(paths, register=True)
    png = registered_picture(plain, moved, window=Window(20, 10, 250, 190), square=40)
    with pytest.warns(NotGeoreferencedWarning), rasterio.MemoryFile(png) as memory, memory.open() as file:
        whole = file.read(1).astype(float)
    assert whole.shape == (190, 250 + 6 + 250)
    jumps = []
    for board in (whole[:, :250], whole[:, 256:]):
        assert board.std() > 10
        rows, cols = np.abs(np.diff(board, axis=0))[39::40], np.abs(np.diff(board, axis=1))[:, 39::40]
        jumps.append(rows.mean() + cols.mean())
    assert jumps[1] < 0.8 * jumps[0]
    with pytest.raises(UsageError, match=r"no product of .* was moved"):
        registered_picture(plain, plain)


def test_one_file_needs_no_registration_and_other_words_are_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 100, 100))
    assert open_scene(path, register=True) == open_scene(path)
    with pytest.raises(UsageError, match="homography"):
        open_scene(path, register="homography")


@pytest.mark.data
def test_multispectral_pixels_of_shanghai_are_laid_over_the_panchromatic_ones(data_dir, tmp_path):
    pan, multi = (data_dir / "wv_spacenet" / f"{kind}_AOI_4_Shanghai_img1920.tif" for kind in ("PAN", "MUL"))
    first = only(open_scene([pan, multi], register=True))
    assert first.accepted
    with rasterio.open(multi) as file:
        data, place, crs = file.read(), file.transform, file.crs
    moved = Affine(*(place @ Affine.translation(SHIFT[1], SHIFT[0]))[:6])
    copy = write_tiff(tmp_path / "multi.tif", data, transform=moved, crs=crs)
    found = only(open_scene([pan, copy], register=True))
    assert (found.rows - first.rows, found.cols - first.cols) == pytest.approx(SHIFT, abs=0.1)
