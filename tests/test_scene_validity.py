"""Which pixels count, and in which dtype they are read."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import rasterio.warp
from rasterio.windows import Window

from satseg.imagery.scene import open_scene
from tests.factories import noise, write_tiff


class TestValidity:
    def test_unsigned_nodata_needs_all_bands(self, tmp_path):
        data = noise(3, 12, 15)
        data[0, 2, 3] = 0
        data[:, 5, 6] = 0
        raster = open_scene(write_tiff(tmp_path / "a.tif", data, nodata=0)).read()
        assert not raster.valid[5, 6]
        assert raster.valid.sum() == 12 * 15 - 1

    @pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "int32"])
    def test_signed_nodata_in_any_band_counts(self, tmp_path, dtype):
        data = noise(3, 12, 15, dtype=dtype)
        data[1, 2, 3] = -9999
        raster = open_scene(write_tiff(tmp_path / "a.tif", data, nodata=-9999)).read()
        assert not raster.valid[2, 3]
        assert raster.valid.sum() == 12 * 15 - 1
        assert not raster.data[:, 2, 3].any()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("nodata", [None, np.nan, -1.7e308])
    def test_nan_and_infinity_are_never_valid(self, tmp_path, bad, nodata):
        data = noise(2, 12, 15, dtype="float64")
        data[1, 4, 4] = bad
        raster = open_scene(write_tiff(tmp_path / "a.tif", data, nodata=nodata)).read()
        assert not raster.valid[4, 4]
        assert raster.valid.sum() == 12 * 15 - 1
        assert np.isfinite(raster.data).all()

    def test_an_internal_mask_counts(self, tmp_path):
        mask = np.random.default_rng(0).random((12, 15)) > 0.4
        path = write_tiff(tmp_path / "a.tif", noise(3, 12, 15, dtype="uint8"), mask=mask)
        np.testing.assert_array_equal(open_scene(path).read().valid, mask)

    def test_a_side_car_mask_counts(self, tmp_path):
        path, mask = tmp_path / "a.tif", np.eye(12, 15) == 0
        write_tiff(path, noise(3, 12, 15, dtype="uint8"))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as out:
            out.write_mask(mask)
        assert (tmp_path / "a.tif.msk").exists()
        np.testing.assert_array_equal(open_scene(path).read().valid, mask)

    def test_alpha_is_validity_not_imagery(self, tmp_path):
        data = noise(4, 12, 15, dtype="uint8")
        data[3] = 255
        data[3, 3:5] = 0
        colours = ["red", "green", "blue", "alpha"]
        scene = open_scene(write_tiff(tmp_path / "a.tif", data, colours=colours))
        raster = scene.read()
        assert raster.names == ("red", "green", "blue")
        np.testing.assert_array_equal(raster.valid, data[3] > 0)
        assert "validity" in scene.warnings[0]

    def test_a_file_of_nodata_only_has_no_valid_pixel(self, tmp_path):
        scene = open_scene(write_tiff(tmp_path / "a.tif", np.zeros((2, 12, 15), "uint8"), nodata=0))
        assert not scene.read().valid.any()
        assert not scene.at_gsd(35).read().valid.any()

    @pytest.mark.parametrize(
        ("dtype", "nodata"), [("uint8", -9999), ("uint8", 0.5), ("int16", 1e9), ("uint16", np.nan)]
    )
    def test_nodata_that_the_dtype_cannot_hold_is_ignored(self, tmp_path, dtype, nodata):
        path = write_tiff(tmp_path / "a.tif", noise(1, 6, 7, dtype=dtype))
        (tmp_path / "a.tif.aux.xml").write_text(
            "<PAMDataset><PAMRasterBand band='1'>"
            f"<NoDataValue>{nodata}</NoDataValue></PAMRasterBand></PAMDataset>"
        )
        scene = open_scene(path)
        assert scene.sources[0].nodata is None
        if nodata == 0.5:  # rasterio itself hides the others
            assert "nodata 0.5" in scene.warnings[0]
        assert scene.read().valid.all()

    def test_files_are_valid_together(self, tmp_path):
        first, second = noise(1, 12, 15), noise(1, 12, 15)
        first[0, 1, 1] = 0
        second[0, 2, 2] = 0
        paths = [write_tiff(tmp_path / f"{n}.tif", d, nodata=0) for n, d in (("a", first), ("b", second))]
        raster = open_scene(paths).read()
        assert not raster.valid[1, 1]
        assert not raster.valid[2, 2]
        assert raster.valid.sum() == 12 * 15 - 2
        assert not raster.data[:, ~raster.valid].any()


class TestDtype:
    def test_scale_and_offset_are_applied(self, tmp_path):
        data = noise(2, 12, 15, dtype="int16")
        data[:, 3, 3] = -1
        scene = open_scene(write_tiff(tmp_path / "a.tif", data, scale=(1e-4, 1000.0), nodata=-1))
        raster = scene.read()
        assert scene.dtype == raster.data.dtype == np.float32
        np.testing.assert_allclose(
            raster.data[:, raster.valid], data[:, raster.valid] * 1e-4 + 1000, rtol=1e-7
        )
        assert (raster.data[:, 3, 3] == 0).all()

    @pytest.mark.parametrize(
        ("dtype", "read"), [("uint8", "float32"), ("int16", "float32"), ("int32", "float64")]
    )
    def test_mixing_pixels_makes_floats_that_hold_the_values(self, tmp_path, dtype, read):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 12, 15, dtype=dtype)))
        assert scene.dtype == dtype
        assert scene.at_gsd(25).dtype == read
        assert scene.at_gsd(25).read().data.dtype == read
        assert scene.at_gsd(25).read(window=Window(-5, -5, 2, 2)).data.dtype == read

    def test_unlike_dtypes_make_floats(self, tmp_path):
        paths = [write_tiff(tmp_path / f"{d}.tif", noise(1, 6, 7, dtype=d)) for d in ("uint8", "uint16")]
        scene = open_scene(paths)
        assert scene.dtype == scene.read().data.dtype == np.float32
        assert scene.select(["b2"]).dtype == np.uint16

    def test_nearest_keeps_the_dtype(self, tmp_path):
        data = noise(1, 12, 15, dtype="uint8")
        scene = open_scene(write_tiff(tmp_path / "a.tif", data), resampling="nearest").at_gsd(5)
        np.testing.assert_array_equal(scene.read().data, data.repeat(2, 1).repeat(2, 2))
        assert scene.dtype == np.uint8

    def test_a_colour_table_makes_classes(self, tmp_path):
        table = {value: (value, 255 - value, 0, 255) for value in range(256)}
        data = noise(1, 12, 15, dtype="uint8")
        scene = open_scene(write_tiff(tmp_path / "a.tif", data, colormap=table))
        assert "colour table" in scene.warnings[0]
        assert scene.sources[0].resampling == "nearest"
        assert set(np.unique(scene.at_gsd(23).read().data)) <= set(np.unique(data))

    def test_a_grey_ramp_is_imagery(self, tmp_path):
        table = {value: (value, value, value, 255) for value in range(256)}
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 12, 15, dtype="uint8"), colormap=table))
        assert scene.sources[0].resampling == "auto"
        assert not scene.warnings
