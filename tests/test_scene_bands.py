"""Bands are known by name: from the caller, the files, or the sensor, and never in a silent wrong order."""

from __future__ import annotations

import numpy as np
import pytest
from rasterio.windows import Window

from satseg.errors import BandError
from satseg.imagery.scene import open_scene
from satseg.specs import SensorSpec
from tests.factories import noise, write_tiff

RGBA = ("red", "green", "blue", "alpha")


@pytest.fixture(scope="module")
def sensor() -> SensorSpec:
    """A sensor with two products, file names that tell the band, and other names for its bands."""
    bands = [
        {"name": "blue", "aliases": ["B02"]},
        {"name": "green", "aliases": ["B03"]},
        {"name": "red", "aliases": ["B04"]},
        {"name": "nir", "aliases": ["B08"]},
        {"name": "pan", "aliases": ["B15"]},
    ]
    return SensorSpec.model_validate(
        {
            "name": "testsat",
            "title": "Test satellite",
            "source": "made up",
            "bands": bands,
            "products": [
                {"name": "ms", "bands": ["blue", "green", "red", "nir"]},
                {"name": "pan", "bands": ["pan"]},
            ],
            "files": [
                {"regex": r"ts_.*_(?P<band>b\d+)"},
                {"regex": r"tsms_.*", "product": "ms"},
            ],
        }
    )


def stack(folder, count=4, name="a.tif", dtype="uint16", **options):
    return write_tiff(folder / name, noise(count, 8, 11, dtype=dtype), **options)


class TestTheCaller:
    def test_a_list_names_bands_in_file_order(self, tmp_path):
        scene = open_scene(stack(tmp_path, 3, descriptions=("x", "y", "z")), bands=["Nir", "Red", "b7"])
        assert scene.bands == ("Nir", "Red", "b7")
        assert scene.naming == "by the caller"

    def test_a_list_runs_over_all_files(self, tmp_path):
        paths = [stack(tmp_path, 2, "a.tif"), stack(tmp_path, 1, "b.tif")]
        scene = open_scene(paths, bands=["r", "g", "p"])
        assert [(s.name, s.path, s.index) for s in scene.sources] == [
            ("r", str(paths[0]), 1),
            ("g", str(paths[0]), 2),
            ("p", str(paths[1]), 1),
        ]

    def test_a_mapping_picks_bands_by_number(self, tmp_path):
        path = stack(tmp_path, 4)
        scene = open_scene(path, bands={"nir": 4, "red": 3})
        np.testing.assert_array_equal(scene.read().data, noise(4, 8, 11)[[3, 2]])

    def test_a_mapping_picks_bands_of_files(self, tmp_path):
        paths = [stack(tmp_path, 2, "a.tif"), stack(tmp_path, 1, "b.tif")]
        scene = open_scene(paths, bands={"p": paths[1], "q": ("a.tif", 2)})
        assert [(s.path, s.index) for s in scene.sources] == [(str(paths[1]), 1), (str(paths[0]), 2)]

    def test_one_name_is_enough_for_one_band(self, tmp_path):
        assert open_scene(stack(tmp_path, 1), bands="pan").bands == ("pan",)

    @pytest.mark.parametrize(
        ("bands", "code"),
        [
            (["a", "b"], "E-BAND-103"),
            (["a"] * 4, "E-BAND-102"),
            ([" ", "b", "c", "d"], "E-BAND-103"),
            ({"a": 5}, "E-BAND-104"),
            ({"a": 0}, "E-BAND-104"),
            ({"a": "other.tif"}, "E-BAND-103"),
            ({}, "E-BAND-103"),
        ],
    )
    def test_a_map_that_does_not_fit_is_refused(self, tmp_path, bands, code):
        with pytest.raises(BandError) as caught:
            open_scene(stack(tmp_path, 4), bands=bands)
        assert caught.value.code == code

    def test_a_bare_number_is_refused_for_several_files(self, tmp_path):
        with pytest.raises(BandError, match="which file"):
            open_scene([stack(tmp_path, 1, "a.tif"), stack(tmp_path, 1, "b.tif")], bands={"x": 1})


class TestTheFiles:
    def test_descriptions_are_names(self, tmp_path):
        scene = open_scene(stack(tmp_path, 3, descriptions=("Near  Infrared", " Red ", "GREEN\x07")))
        assert scene.bands == ("near_infrared", "red", "green")
        assert scene.naming == "by band descriptions"

    @pytest.mark.parametrize("descriptions", [("a", "b", ""), ("a", "a", "b")])
    def test_missing_and_repeated_descriptions_name_nothing(self, tmp_path, descriptions):
        scene = open_scene(stack(tmp_path, 3, descriptions=descriptions))
        assert scene.bands == ("b1", "b2", "b3")
        assert scene.naming == "by number"

    def test_endless_descriptions_are_cut(self, tmp_path):
        scene = open_scene(stack(tmp_path, 2, descriptions=("x" * 500, "y")))
        assert scene.bands == ("x" * 64, "y")

    def test_colours_name_bands_when_all_have_one(self, tmp_path):
        scene = open_scene(stack(tmp_path, 3, dtype="uint8", colours=("red", "green", "blue")))
        assert scene.bands == ("red", "green", "blue")
        assert scene.naming == "by colour interpretation"

    def test_colours_of_some_bands_name_nothing(self, tmp_path):
        """GDAL calls the first three bands of an eight-band file red, green and blue unasked."""
        colours = ("red", "green", "blue", *["undefined"] * 5)
        assert open_scene(stack(tmp_path, 8, colours=colours)).bands == tuple(f"b{n}" for n in range(1, 9))

    def test_several_files_are_numbered_on(self, tmp_path):
        paths = [stack(tmp_path, count, f"{count}.tif") for count in (2, 1, 3)]
        assert open_scene(paths).bands == ("b1", "b2", "b3", "b4", "b5", "b6")

    def test_descriptions_that_files_share_name_nothing(self, tmp_path):
        paths = [stack(tmp_path, 1, name, descriptions=("reflectance",)) for name in ("a.tif", "b.tif")]
        assert open_scene(paths).bands == ("b1", "b2")


class TestTheSensor:
    def test_descriptions_take_the_sensors_names(self, tmp_path, sensor):
        scene = open_scene(stack(tmp_path, 3, descriptions=("b08", "B04", "cloud")), sensor=sensor)
        assert scene.bands == ("nir", "red", "cloud")

    @pytest.mark.parametrize("words", ["Band {}", "layer_{}", "{}", "B{}"])
    def test_descriptions_that_only_count_give_way_to_the_order(self, tmp_path, sensor, words):
        counted = [words.format(n) for n in range(31, 35)]
        scene = open_scene(stack(tmp_path, 4, descriptions=counted), sensor=sensor)
        assert scene.bands == ("blue", "green", "red", "nir")
        assert scene.naming == "by the band order of testsat"
        assert scene.sensor == "testsat"

    def test_own_descriptions_stay(self, tmp_path, sensor):
        scene = open_scene(stack(tmp_path, 4, descriptions=("ndvi", "vv", "vh", "slope")), sensor=sensor)
        assert scene.bands == ("ndvi", "vv", "vh", "slope")

    def test_file_names_tell_the_band(self, tmp_path, sensor):
        paths = [stack(tmp_path, 1, f"TS_20200101_{band}.tif") for band in ("B08", "B02")]
        scene = open_scene(paths, sensor=sensor)
        assert scene.bands == ("nir", "blue")
        assert scene.naming == "by file name as testsat"

    def test_a_description_that_is_the_file_name_gives_way_to_it(self, tmp_path, sensor):
        path = stack(tmp_path, 1, "ts_x_b04.tif", descriptions=("TS_x_b04",))
        assert open_scene(path, sensor=sensor).bands == ("red",)

    def test_the_order_given_beats_colours_that_gdal_assumed(self, tmp_path, sensor):
        scene = open_scene(stack(tmp_path, 4, dtype="uint8", colours=RGBA), sensor=sensor)
        assert scene.bands == ("blue", "green", "red", "nir")

    def test_a_mask_beside_named_bands_is_not_called_by_order(self, tmp_path, sensor):
        paths = [stack(tmp_path, 1, name) for name in ("ts_x_B15.tif", "ts_x_quality.tif")]
        assert open_scene(paths, sensor=sensor).bands == ("pan", "b2")

    def test_one_scene_does_not_hold_a_band_twice(self, tmp_path, sensor):
        paths = [stack(tmp_path, 1, name) for name in ("ts_2020_B04.tif", "ts_2021_B04.tif")]
        with pytest.raises(BandError, match=r"ts_2020_B04.*ts_2021_B04") as caught:
            open_scene(paths, sensor=sensor)
        assert caught.value.code == "E-BAND-102"

    def test_a_count_that_fits_no_order_is_numbered(self, tmp_path, sensor):
        assert open_scene(stack(tmp_path, 3), sensor=sensor).bands == ("b1", "b2", "b3")

    def test_shipped_sensors_are_recognised_by_file_names(self, tmp_path):
        names = ("S2A_MSIL2A_20200101T000000_1_1_B04.tif", "S2A_MSIL2A_20200101T000000_1_1_B8A.tif")
        scene = open_scene([stack(tmp_path, 1, name) for name in names])
        assert scene.bands[0] == "red"
        assert scene.sensor is not None
        assert scene.sensor.startswith("sentinel2")


class TestAlpha:
    """Four 8-bit bands are written as RGBA by default, whatever the fourth band is."""

    def test_four_bands_that_nobody_named_are_rgba(self, tmp_path):
        scene = open_scene(stack(tmp_path, 4, dtype="uint8", photometric="RGB", alpha="YES"))
        assert scene.bands == ("red", "green", "blue")
        assert "name it" in scene.warnings[0]

    @pytest.mark.parametrize(
        "options", [{"bands": ["r", "g", "b", "n"]}, {"bands": {"x": 1, "n": 4}}, {"sensor": "testsat"}]
    )
    def test_named_bands_are_imagery(self, tmp_path, sensor, options):
        data = noise(4, 8, 11, dtype="uint8")
        data[3, :4] = 0
        path = write_tiff(tmp_path / "a.tif", data, colours=RGBA)
        raster = open_scene(path, **(options | ({"sensor": sensor} if "sensor" in options else {}))).read()
        np.testing.assert_array_equal(raster.data[-1], data[3])
        assert raster.valid.all()

    def test_an_alpha_band_with_a_description_of_its_own_is_imagery(self, tmp_path):
        path = stack(tmp_path, 4, dtype="uint8", colours=RGBA, descriptions=("R", "G", "B", "NIR"))
        scene = open_scene(path)
        assert scene.bands == ("r", "g", "b", "nir")
        assert "imagery" in scene.warnings[0]

    def test_three_names_leave_the_alpha_band_as_validity(self, tmp_path):
        data = noise(4, 8, 11, dtype="uint8")
        data[3, :4] = 0
        path = write_tiff(tmp_path / "a.tif", data, colours=RGBA)
        raster = open_scene(path, bands=["x", "y", "z"]).read(window=Window(0, 2, 11, 4))
        np.testing.assert_array_equal(raster.valid[:, 0], [False, False, True, True])
