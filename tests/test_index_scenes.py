"""Indices among the bands of a scene, and as rasters streamed to disk."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

import satseg
from satseg.errors import BandError, OutputError
from satseg.imagery.indexing import strips, write_index
from satseg.imagery.rows import RowReader
from satseg.imagery.scene import open_scene
from satseg.raster import Raster
from tests.factories import noise, north_up, write_tiff

HEIGHT, WIDTH = 37, 53


def made(folder, *, dtype="uint16", nodata=0, **options):
    """A scene of red, nir and (half as fine) swir1, with nodata in a corner and 0/0 in no pixel."""
    fine = noise(2, HEIGHT, WIDTH, dtype=dtype)
    fine[:, :5, :9] = 0
    coarse = noise(1, HEIGHT // 2 + 1, WIDTH // 2 + 1, dtype=dtype, seed=1)
    paths = [
        write_tiff(folder / "fine.tif", fine, nodata=nodata, descriptions=["red", "nir"], **options),
        write_tiff(folder / "coarse.tif", coarse, transform=north_up(20.0), descriptions=["swir1"]),
    ]
    return open_scene(paths)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return made(tmp_path_factory.mktemp("indices")).with_indices("ndvi", "ndmi")


def same(first: Raster, second: Raster) -> None:
    assert first.names == second.names
    assert first.data.dtype == second.data.dtype
    np.testing.assert_array_equal(first.valid, second.valid)
    np.testing.assert_array_equal(first.data, second.data)


def test_indices_are_bands_after_the_stored_ones(scene):
    assert scene.bands == ("red", "nir", "swir1", "ndvi", "ndmi")
    whole = scene.read()
    assert (whole.names, whole.data.dtype) == (scene.bands, np.float32)
    assert not whole.valid[:5, :9].any()
    assert whole.valid[5:, 9:].all()
    red, nir, swir, ndvi, ndmi = np.where(whole.valid, whole.data, 1)
    np.testing.assert_array_equal(np.where(whole.valid, ndvi, 0), (nir - red) / (nir + red))
    np.testing.assert_array_equal(np.where(whole.valid, ndmi, 0), (nir - swir) / (nir + swir))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_window_is_the_crop_of_the_whole(scene, data):
    top, left = data.draw(st.integers(0, HEIGHT - 1)), data.draw(st.integers(0, WIDTH - 1))
    window = Window(
        left, top, data.draw(st.integers(1, WIDTH - left)), data.draw(st.integers(1, HEIGHT - top))
    )
    names = data.draw(st.permutations(scene.bands).flatmap(lambda b: st.integers(1, 5).map(lambda n: tuple(b[:n]))))
    same(scene.read(window=window, bands=names), scene.read(bands=names).crop(window))


def test_selected_indices_carry_the_bands_they_need_unseen(scene):
    chosen = scene.select(["ndmi", "red"])
    assert chosen.bands == ("ndmi", "red")
    assert [source.name for source in chosen.sources] == ["red", "nir", "swir1"]
    np.testing.assert_array_equal(chosen.read().data, scene.read().select(["ndmi", "red"]).data)
    assert chosen.select(["red"]).read().data.dtype == np.uint16
    with pytest.raises(BandError, match=r"not \('nir',\)"):
        chosen.select(["nir"])


def test_indices_follow_the_scene_to_other_pixels_and_are_computed_there(scene):
    coarse = scene.at_gsd(30.0)
    whole = coarse.read()
    red, nir = whole.select(["red", "nir"]).data
    with np.errstate(invalid="ignore"):
        wanted = np.where(whole.valid, (nir - red) / (nir + red), 0)
    np.testing.assert_array_equal(whole.select(["ndvi"]).data[0], wanted)
    same(coarse.read(window=Window(3, 2, 5, 4)), whole.crop(Window(3, 2, 5, 4)))


def test_readers_of_all_kinds_agree_and_pickle(scene):
    whole = scene.read()
    again = pickle.loads(pickle.dumps(scene))
    assert again == scene
    same(again.read(), whole)
    out = np.full(whole.data.shape, 7, np.float32)
    with pickle.loads(pickle.dumps(scene.reader())) as reader:
        valid = reader.read_into(out, scene.grid.window)
    np.testing.assert_array_equal(out, whole.data)
    np.testing.assert_array_equal(valid, whole.valid)
    with RowReader(scene, rows=range(HEIGHT), cols=range(WIDTH)) as rows:
        data, known = np.empty_like(out), np.empty(whole.valid.shape, bool)
        rows.window(0, HEIGHT).copy_into(data, known, scene.grid.window)
    np.testing.assert_array_equal(data, whole.data)


def test_an_undefined_index_costs_a_pixel_only_when_asked(tmp_path):
    data = np.int16([[[0, 5, -4]], [[0, 15, 4]]])
    scene = open_scene(write_tiff(tmp_path / "dark.tif", data, descriptions=["red", "nir"]))
    kept, strict = (scene.with_indices("ndvi", undefined=value).read() for value in (0.0, None))
    np.testing.assert_array_equal(kept.data[2], [[0, 0.5, 0]])
    np.testing.assert_array_equal(kept.data[0], data[0])
    assert kept.valid.all()
    np.testing.assert_array_equal(strict.valid, [[False, True, False]])
    np.testing.assert_array_equal(strict.data[:, ~strict.valid], 0)


def test_a_name_that_is_there_already_is_refused(scene):
    for names in (["ndvi"], ["ndwi", "ndwi"]):
        with pytest.raises(BandError, match="two bands called") as caught:
            scene.with_indices(*names, bands={"green": "red"})
        assert caught.value.code == "E-BAND-305"
    assert scene.with_indices() is scene


def test_what_is_known_of_a_scene_tells_of_its_indices(scene):
    told = scene.info()["bands"]
    assert [band["name"] for band in told] == list(scene.bands)
    assert told[3]["formula"] == "(nir - red) / (nir + red)"
    assert told[3]["inputs"] == {"nir": "nir", "red": "red"}
    assert "ndvi" in scene._repr_html_()


def test_wide_integers_are_computed_in_double_precision(tmp_path):
    data = np.uint32([[[2**31 + 1]], [[2**31]]])
    scene = open_scene(write_tiff(tmp_path / "wide.tif", data, descriptions=["red", "nir"]))
    found = scene.with_indices("ndvi").read()
    assert found.data.dtype == np.float64
    assert found.data[2, 0, 0] == pytest.approx(-1 / (2**32 + 1), rel=1e-12)


# --- rasters on disk ----------------------------------------------------------------------------------


def test_a_written_index_holds_what_is_read_and_nan_where_there_is_none(tmp_path, scene):
    bare = made(tmp_path)
    write_index(bare, tmp_path / "out.tif", "ndvi", "ndmi")
    wanted = satseg.index(bare, "ndvi", "ndmi")
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.descriptions == ("ndvi", "ndmi")
        assert dataset.dtypes == ("float32", "float32")
        assert np.isnan(dataset.nodata)
        assert "ndvi: (nir - red) / (nir + red) with nir = nir" in dataset.tags()["TIFFTAG_IMAGEDESCRIPTION"]
        found = dataset.read()
    np.testing.assert_array_equal(found, np.where(wanted.valid, wanted.data, np.nan))
    same(satseg.index(scene, "ndvi", "ndmi"), wanted)
    back = open_scene(tmp_path / "out.tif").read()
    np.testing.assert_array_equal(back.valid, wanted.valid)


def test_each_written_index_has_gaps_of_its_own(tmp_path):
    data = np.int16([[[0, 5, -4]], [[0, 15, 4]], [[2, 2, 2]]])
    scene = open_scene(write_tiff(tmp_path / "dark.tif", data, descriptions=["red", "nir", "green"]))
    write_index(scene, tmp_path / "out.tif", "ndvi", "ndwi")
    with rasterio.open(tmp_path / "out.tif") as dataset:
        ndvi, ndwi = dataset.read()
    np.testing.assert_array_equal(np.isnan(ndvi), [[True, False, True]])
    np.testing.assert_allclose(ndwi, [[1, -13 / 17, -1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("tall", [1, 511, 513, 1100])
def test_strips_put_together_are_the_window(tmp_path, tall):
    data = noise(2, tall, 3)
    path = write_tiff(tmp_path / "tall.tif", data, descriptions=["red", "nir"], nodata=5)
    scene = open_scene(path).with_indices("ndvi")
    window = Window(1, 0, 2, tall)
    found = np.concatenate([part.copy() for part, _, _ in strips(scene, window)], axis=1)
    np.testing.assert_array_equal(found, scene.read(window=window).data)


def test_a_part_of_a_scene_is_written_where_it_lies(tmp_path):
    scene, window = made(tmp_path), Window(11, 4, 20, 9)
    write_index(scene, tmp_path / "part.tif", "ndvi", window=window)
    part = open_scene(tmp_path / "part.tif")
    assert part.grid.matches(scene.grid.crop(window))
    np.testing.assert_array_equal(part.read().data, satseg.index(scene, "ndvi", window=window).data)


def test_an_output_is_refused_before_work_and_an_input_is_never_replaced(tmp_path):
    scene = made(tmp_path)
    (tmp_path / "there.tif").touch()
    with pytest.raises(OutputError, match="exists"):
        write_index(scene, tmp_path / "there.tif", "ndvi")
    with pytest.raises(satseg.SatsegError, match="an input too"):
        write_index(scene, tmp_path / "fine.tif", "ndvi", overwrite=True)


@pytest.mark.parametrize("valid", [True, False])
def test_one_pixel_and_no_pixel(tmp_path, valid):
    data = np.full((2, 1, 1), 6 if valid else 0, np.uint8)
    bare = {"transform": Affine.identity(), "crs": None}
    path = write_tiff(tmp_path / "one.tif", data, nodata=0, descriptions=["red", "nir"], **bare)
    write_index(open_scene(path), tmp_path / "out.tif", "sr")
    found = open_scene(tmp_path / "out.tif").read()
    np.testing.assert_array_equal(found.data, [[[1.0 if valid else 0.0]]])
    assert found.valid[0, 0] == valid


# --- the command line ---------------------------------------------------------------------------------


def test_the_command_writes_what_python_returns(tmp_path, run):
    scene = made(tmp_path)
    files, out = f"{tmp_path}/fine.tif,{tmp_path}/coarse.tif", tmp_path / "out.tif"
    told = run("index", files, "ndmi", "ndvi", "-o", out, "--band-role", "swir1=red", "--undefined", 0)
    assert told.out.strip() == f"{out}: ndmi, ndvi"
    wanted = satseg.index(scene, "ndmi", "ndvi", bands={"swir1": "red"}, undefined=0)
    np.testing.assert_array_equal(open_scene(out).read().data, wanted.data)


def test_the_command_takes_scales_as_fractions(tmp_path, run):
    scene = made(tmp_path)
    run("index", f"{tmp_path}/fine.tif", "savi", "-o", tmp_path / "out.tif", "--scale", "1/2047").done()
    wanted = satseg.index(scene, "savi", scale=1 / 2047)
    np.testing.assert_array_equal(open_scene(tmp_path / "out.tif").read().data[0], wanted.data[0])
    told = run("index", f"{tmp_path}/fine.tif", "savi", "-o", tmp_path / "x.tif", "--scale", "red=1/2047")
    assert "savi mixes units" in told.refused(3, "E-BAND-302")
    assert not (tmp_path / "x.tif").exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [("0", "E-USE-082"), ("-1/10000", "E-USE-082"), ("red=0", "E-USE-082"), ("nan", "E-USE-000"),
     ("red=inf", "E-USE-000")],
)  # fmt: skip
def test_the_command_refuses_a_scale_that_is_no_factor(tmp_path, run, text, code):
    made(tmp_path)
    run("index", f"{tmp_path}/fine.tif", "ndvi", "-o", tmp_path / "out.tif", "--scale", text).refused(2, code)


@pytest.mark.parametrize(
    ("twice", "said"),
    [(("--band-role", "nir=nir", "--band-role", "nir=red"), "nir is given twice: nir and red"),
     (("--scale", "red=0.1", "--scale", "red=0.2"), "the scale of red is given twice")],
)  # fmt: skip
def test_the_command_refuses_what_is_told_twice(tmp_path, run, twice, said):
    made(tmp_path)
    told = run("index", f"{tmp_path}/fine.tif", "ndvi", "-o", tmp_path / "out.tif", *twice)
    assert said in told.refused(2, "E-USE-000")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["x.tif"], "give SCENE and NAME"), (["x.tif", "ndvi"], "give -o"), (["x.tif", "ndvi", "-o", "y.tif"], "x.tif"),
     (["x.tif", "ndvi", "--scale", "1/0"], "'1/0' is no number"),
     (["x.tif", "--band-role", "nir"], "is not ROLE=BAND")],
)  # fmt: skip
def test_the_command_says_what_is_missing(run, arguments, said):
    told = run("index", *arguments)
    assert told.status in (2, 3)
    assert said in told.err


def test_the_command_lists_all_indices(run):
    told = run("index", "--list")
    assert "ccci_product" in told.out
    assert "((nir - red_edge) / (nir + red_edge)) / ((nir - red) / (nir + red))" in told.out
