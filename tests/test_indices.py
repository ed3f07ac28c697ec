"""Spectral indices: their values, the bands they find, and the units they refuse."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from affine import Affine

import satseg
from satseg.errors import BandError, SpecError, UsageError
from satseg.grid import Grid
from satseg.imagery.indices import REFLECTANCE, SHARE, Candidate, find_band, index_bands
from satseg.imagery.scene import open_scene
from satseg.raster import Raster
from satseg.specs import index_spec, list_sensors, load_document, sensor_spec
from tests.factories import write_tiff

SPEC = index_spec()
MULTI = ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir1", "nir2")


def raster(valid=None, **bands):
    data = np.stack([np.atleast_2d(values) for values in bands.values()])
    return Raster(data, Grid(*data.shape[1:], Affine.identity(), None), tuple(bands), valid)


def only(found):
    assert found.shape == (1, 1, 1)
    return float(found.data[0, 0, 0])


# --- worked values: docs/seed-systems.md, M12 ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("ndwi", -0.428571428571), ("ndvi", 0.666666666667), ("evi_no_gain", 0.296296296296), ("evi", 0.740740740741),
     ("ccci_product", 0.166666666667), ("ccci_ratio", 0.375), ("rei", 0.35)],
)  # fmt: skip
def test_worked_values_of_2017(name, value):
    pixel = raster(red=0.1, green=0.2, blue=0.1, red_edge=0.3, nir=0.5)
    assert only(satseg.index(pixel, name)) == pytest.approx(value, abs=1e-9)


def test_the_unit_slip_of_2017_is_refused_and_one_unit_is_not():
    counts = {"red_edge": 420.0, "nir": 300.0, "red": 400.0}
    assert only(satseg.index(raster(**counts), "ccci_product")) == pytest.approx(0.0238095238, abs=1e-9)
    slipped = {"red_edge": 420 / 65535, "nir": 300 / 65535, "red": 400.0}
    with pytest.raises(BandError, match=r"mixes units: nir up to 0\.00457771") as caught:
        satseg.index(raster(**slipped), "ccci_product")
    assert caught.value.code == "E-BAND-302"
    told = satseg.index(raster(**slipped), "ccci_product", scale={"red_edge": 1, "nir": 1, "red": 1 / 65535})
    assert only(told) == pytest.approx(0.0238095238, abs=1e-9)


def test_all_shared_indices_are_those_of_spyndex():
    spyndex = pytest.importorskip("spyndex")
    theirs = {"bsi": "BI", "ndre": "NDREI", "ci_red_edge": "CIRE", "awei_sh": "AWEIsh"}
    alone = {"evi_no_gain", "ccci_ratio", "ccci_product", "rei"}
    short = {"blue": "B", "green": "G", "red": "R", "red_edge": "RE1", "nir": "N", "swir1": "S1", "swir2": "S2"}
    rng = np.random.default_rng(0)
    bands = {name: rng.uniform(0.02, 0.6, (7, 5)) for name in short}
    params = {short[name]: plane for name, plane in bands.items()}
    params |= {"g": 2.5, "C1": 6.0, "C2": 7.5, "gamma": 1.0}
    for item in SPEC.indices:
        if item.name in alone:
            continue
        soil = {"L": 0.5 if item.name == "savi" else 1.0}
        wanted = spyndex.computeIndex(theirs.get(item.name, item.name.upper()), params=params | soil)
        found = satseg.index(raster(**bands), item.name)
        np.testing.assert_allclose(found.data[0], wanted, rtol=1e-9, atol=1e-12, err_msg=item.name)


# --- which band plays a role --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sensor", "roles"),
    [("worldview3", {"nir": "nir1", "red_edge": "red_edge", "swir1": "swir2", "swir2": "swir6", "blue": "blue"}),
     ("sentinel2_l2a", {"nir": "nir", "red_edge": "rededge1", "swir1": "swir1", "swir2": "swir2"}),
     ("landsat89_oli", {"nir": "nir", "swir1": "swir1", "green": "green", "red": "red"}),
     ("planetscope_8band", {"green": "green", "red": "red", "red_edge": "red_edge"}),
     ("naip_rgbn", {"nir": "nir", "red": "red"}), ("pleiades", {"red": "red", "nir": "nir"})],
)  # fmt: skip
def test_roles_find_their_bands_by_wavelength(sensor, roles):
    among = [Candidate(band.name, "uint16", spec=band) for band in sensor_spec(sensor).bands]
    assert {role: find_band(SPEC, role, among, "x") for role in roles} == roles


@pytest.mark.parametrize("sensor", list_sensors())
def test_no_panchromatic_water_vapour_or_thermal_band_plays_a_role_even_alone(sensor):
    for band in sensor_spec(sensor).bands:
        if band.center_nm is not None and re.match("pan|water|therm|cirrus|coastal", band.name):
            assert all(role.distance_nm(band) == np.inf for role in SPEC.roles), band.name


def test_a_missing_role_is_told_with_its_wavelengths_and_how_to_name_it():
    with pytest.raises(BandError, match=r"ndvi needs a band of nir \(790 to 900 nm\)") as caught:
        satseg.index(raster(red=1, green=2), "ndvi")
    assert caught.value.code == "E-BAND-301"
    assert "--band-role nir=" in caught.value.hint
    assert only(satseg.index(raster(red=1, b4=3), "NDVI", bands={"nir": "b4"})) == 0.5


def test_roles_and_bands_that_do_not_exist_are_refused():
    for bands in ({"nri": "nir"}, {"nir": "nir9"}):
        with pytest.raises(BandError) as caught:
            satseg.index(raster(red=1.0, nir=2.0), "ndvi", bands=bands)
        assert caught.value.code == "E-BAND-304"
    with pytest.raises(SpecError, match="unknown index 'ndvy'; did you mean 'ndvi'"):
        satseg.index(raster(red=1.0, nir=2.0), "ndvy")
    with pytest.raises(UsageError, match="no index is named"):
        satseg.index(raster(red=1.0, nir=2.0))


def test_the_nir_of_2017_is_taken_when_told(tmp_path):
    data = np.arange(1, 8 * 6 + 1, dtype=np.uint16).reshape(8, 2, 3)
    scene = open_scene(write_tiff(tmp_path / "6010_1_2_M.tif", data), sensor="worldview3")
    assert scene.bands == MULTI
    plain, told = (satseg.index(scene, "ndvi", bands=bands).data[0] for bands in (None, {"nir": "nir2"}))
    red, nir1, nir2 = (data[MULTI.index(name)].astype(np.float32) for name in ("red", "nir1", "nir2"))
    np.testing.assert_array_equal(plain, (nir1 - red) / (nir1 + red))
    np.testing.assert_array_equal(told, (nir2 - red) / (nir2 + red))


# --- units --------------------------------------------------------------------------------------------


def band(name, dtype="uint16", *, scaled=False, sensor=None):
    return Candidate(name, dtype, scaled, sensor_spec(sensor).band(name) if sensor else None)


def test_units_come_from_the_file_the_caller_and_the_sensor_in_that_order():
    assert band("red", sensor="worldview3").unit().name == SHARE
    assert band("red", sensor="worldview3").unit().scale == 1 / 2047
    assert band("swir2", sensor="worldview3").unit().scale == 1 / 16383
    level2 = band("red", sensor="sentinel2_l2a").unit()
    assert (level2.name, level2.scale, level2.offset) == (REFLECTANCE, 0.0001, -0.1)
    assert band("red", scaled=True, sensor="worldview3").unit().name == REFLECTANCE
    assert band("red", sensor="worldview3").unit(0.5).scale == 0.5
    assert band("red", scaled=True).unit(0.5) == band("red", scaled=True).unit()
    assert band("red", "uint8", sensor="worldview3").unit().name == "values as stored (uint8)"
    assert band("red", "int16").unit().name == "values as stored (int16)"


@pytest.mark.parametrize(
    ("red", "nir"),
    [(band("red"), band("nir", "float32")), (band("red", scaled=True), band("nir")),
     (band("red", "uint8"), band("nir")), (band("red", sensor="worldview3"), band("nir", scaled=True)),
     (band("red", scaled=True), band("nir", "float32"))],
)  # fmt: skip
def test_bands_of_different_units_are_refused_unless_told(red, nir):
    with pytest.raises(BandError, match=r"ndvi mixes units: nir in .*, red in .*scale=") as caught:
        index_bands(["ndvi"], [red, nir])
    assert caught.value.code == "E-BAND-302"
    assert index_bands(["ndvi"], [red, nir], scale=0.5)[0].unit == REFLECTANCE


def test_a_told_scale_is_of_raw_counts_and_passes_over_files_that_have_their_own(tmp_path):
    counts = {"red": np.full((1, 3, 5), 1000, np.uint16), "nir": np.full((1, 3, 5), 3000, np.uint16)}
    own = {"red": (1e-4, 0.0)}
    paths = [
        write_tiff(tmp_path / f"{name}.tif", data, descriptions=[name], scale=own.get(name))
        for name, data in counts.items()
    ]
    scene = open_scene(paths)
    found = satseg.index(scene, "savi", scale=1e-4)
    wanted = satseg.index(raster(red=np.float32(0.1), nir=np.float32(0.3)), "savi")
    np.testing.assert_allclose(found.data, only(wanted), rtol=1e-5)
    (settled,) = scene.with_indices("savi", scale=1e-4).indices
    assert {one.band: one.said for one in settled.inputs} == {"red": False, "nir": True}
    with pytest.raises(BandError, match="the file of red has a scale of its own") as caught:
        satseg.index(scene, "savi", scale={"red": 1e-4, "nir": 1e-4})
    assert caught.value.code == "E-BAND-307"


@pytest.mark.parametrize("factor", [0, -1e-4, np.nan, np.inf])
@pytest.mark.parametrize("named", [False, True])
def test_a_scale_that_is_no_factor_is_refused(factor, named):
    with pytest.raises(UsageError, match=f"scale {factor}{' of red' if named else ''} is no factor") as caught:
        satseg.index(raster(red=1.0, nir=2.0), "ndvi", scale={"red": factor} if named else factor)
    assert caught.value.code == "E-USE-082"


@pytest.mark.parametrize("name", [item.name for item in SPEC.indices if item.unit == "reflectance"])
def test_an_index_of_reflectance_is_refused_on_bare_counts(name):
    bands = {role.name: 300 for role in SPEC.roles}
    counts = raster(**{role: np.uint16([value]) for role, value in bands.items()})
    with pytest.raises(BandError, match=f"{name} is of reflectance") as caught:
        satseg.index(counts, name)
    assert caught.value.code == "E-BAND-303"
    with pytest.raises(BandError, match=r"the bands hold .* up to 300"):
        satseg.index(raster(**{role: float(value) for role, value in bands.items()}), name)
    scaled = satseg.index(counts, name, scale=1 / 10000, undefined=0)
    plain = satseg.index(raster(**{role: value / 10000 for role, value in bands.items()}), name, undefined=0)
    assert only(scaled) == pytest.approx(only(plain), rel=1e-5, abs=1e-6)


def test_the_offset_of_a_sensor_counts_in_ratios_too(tmp_path):
    spec = sensor_spec("sentinel2_l2a")
    paths = [
        write_tiff(tmp_path / f"T33UUP_20240101T100000_{code}_10m.tif", np.full((1, 2, 3), value, np.uint16))
        for code, value in (("B04", 1500), ("B08", 3000))
    ]
    scene = open_scene(paths)
    assert (scene.sensor, scene.bands) == (spec.name, ("red", "nir"))
    np.testing.assert_allclose(satseg.index(scene, "ndvi").data, (0.2 - 0.05) / 0.25, rtol=1e-5)
    np.testing.assert_allclose(satseg.index(scene, "ndvi", scale=1e-4).data, 1 / 3, rtol=1e-6)  # older baselines


def test_eleven_and_fourteen_bits_of_one_sensor_become_shares_of_their_full_scales(tmp_path):
    multi = np.full((8, 4, 6), 2047, np.uint16)
    swir = np.full((8, 4, 6), 16383 // 3, np.uint16)
    paths = [write_tiff(tmp_path / f"6010_1_2_{kind}.tif", data) for kind, data in (("M", multi), ("A", swir))]
    scene = open_scene(paths, sensor="worldview3")
    np.testing.assert_allclose(satseg.index(scene, "mndwi").data, (1 - 1 / 3) / (1 + 1 / 3), rtol=1e-6)


def test_shares_in_place_of_reflectance_are_said(tmp_path, caplog):
    scene = open_scene(write_tiff(tmp_path / "6010_1_2_M.tif", np.full((8, 2, 3), 500, np.uint16)))
    satseg.index(scene, "savi", "ndvi")
    assert [record.message for record in caplog.records] == [
        "savi is computed on shares of the full scale, not on reflectance; scale= says better"
    ]


def test_stored_floats_of_two_units_in_two_files_are_found_by_their_values(tmp_path):
    files = {"red": np.full((1, 70, 90), 400, np.float32), "nir": np.full((1, 70, 90), 0.4, np.float32)}
    paths = [write_tiff(tmp_path / f"{name}.tif", data, descriptions=[name]) for name, data in files.items()]
    scene = open_scene(paths)
    with pytest.raises(BandError, match="mixes units"):
        satseg.index(scene, "ndvi")


# --- what is undefined, invalid, or wraps -------------------------------------------------------------


def test_unsigned_bands_do_not_wrap():
    bands = raster(red=np.uint16([[65535, 2]]), nir=np.uint16([[65535, 1]]))
    found = satseg.index(bands, "ndvi")
    assert found.data.dtype == np.float32
    np.testing.assert_allclose(found.data[0], [[0, -1 / 3]], rtol=1e-6)
    small = raster(red=np.uint8([[255]]), nir=np.uint8([[254]]))
    assert only(satseg.index(small, "ndvi")) == pytest.approx(-1 / 509, rel=1e-6)
    wide = raster(red=np.uint32([[2**31 + 1]]), nir=np.uint32([[2**31]]))
    assert only(satseg.index(wide, "ndvi")) == pytest.approx(-1 / (2**32 + 1), rel=1e-12)


def test_nought_by_nought_is_not_valid_or_the_value_asked_for():
    bands = raster(red=np.array([[0, 1, -1.0]]), nir=np.array([[0, 1, 1.0]]))
    lost = satseg.index(bands, "ndvi")
    np.testing.assert_array_equal(lost.valid, [[False, True, False]])
    np.testing.assert_array_equal(lost.data[0], [[0, 0, 0]])
    kept = satseg.index(bands, "ndvi", undefined=-9)
    assert kept.valid.all()
    np.testing.assert_array_equal(kept.data[0], [[-9, 0, -9]])


def test_pixels_that_are_not_valid_stay_so_and_nan_is_none():
    valid = np.array([[True, False, True]])
    bands = raster(valid, red=np.array([[1, 1, np.nan]]), nir=np.array([[3, 3, 3.0]]))
    found = satseg.index(bands, "ndvi", undefined=0)
    np.testing.assert_array_equal(found.valid, [[True, False, False]])
    np.testing.assert_array_equal(found.data[0], [[0.5, 0, 0]])
    nothing = satseg.index(raster(np.zeros((1, 3), bool), red=np.ones((1, 3)), nir=np.ones((1, 3))), "ndvi", "sr")
    assert nothing.names == ("ndvi", "sr")
    assert not nothing.valid.any()
    assert not nothing.data.any()


# --- documents ----------------------------------------------------------------------------------------

OWN = """kind = "indices"
title = "Mine"
source = "Made for the test"
roles = [
  { name = "red", low_nm = 600, center_nm = 650, high_nm = 700, names = ["r"] },
  { name = "green", low_nm = 500, center_nm = 550, high_nm = 600 },
]
[[indices]]
name = "half"
title = "Half"
formula = "K * red / red"
constants = [{ name = "K", value = 0.5 }]
unit = "any"
source = "Made for the test"
"""


def test_indices_of_ones_own_are_used_like_the_shipped(tmp_path):
    (tmp_path / "mine.toml").write_text(OWN)
    spec = index_spec(tmp_path / "mine.toml")
    assert only(satseg.index(raster(r=7.0), "half", spec=spec)) == 0.5


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [('unit = "any"', 'unit = "reflectance"', "line 13: half: a factor on all bands cancels out: unit is 'any'"),
     ("red / red", "red", "line 13: half: a factor on all bands does not cancel out"),
     ("red / red", "nir / red", "line 11: formula 'K * nir / red', character 5: unknown name 'nir'"),
     ("K * red", "__import__('os')", "a call of __import__ is not allowed"),
     ('name = "K"', 'name = "red"', "'red' is no name that a constant can have"),
     ("center_nm = 650", "center_nm = 500", "low_nm < center_nm < high_nm does not hold"),
     ('title = "Half"', 'titel = "Half"', "unknown key 'titel'")],
)  # fmt: skip
def test_a_document_is_refused_with_the_line(tmp_path, old, new, said):
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace(old, new))
    with pytest.raises(SpecError, match=re.escape(said)):
        load_document(path)


def test_settled_indices_survive_pickling_and_tell_what_they_are():
    found = index_bands(["evi"], [band(name, sensor="sentinel2_l2a") for name in ("blue", "red", "nir")])
    assert pickle.loads(pickle.dumps(found)) == found
    assert found[0].told().endswith("with nir = nir, red = red, blue = blue, in reflectance (value x 0.0001 - 0.1)")
