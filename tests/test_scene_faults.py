"""Bad input: one error each, with its own code, the exit status 3, and a hint; never a wrong scene."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from satseg.errors import CRSError, GridError, InputError, SatsegError
from satseg.imagery.drivers import DEFAULT_DRIVERS
from satseg.imagery.scene import open_scene
from satseg.imagery.sources import inspect
from tests.factories import ORIGIN, noise, north_up, write_tiff

VRT = """<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>
</VRTRasterBand></VRTDataset>"""


def refusal(code: str, kind: type[SatsegError] = InputError):
    """Expect an error of that code that ends the command line with status 3."""

    class Expect:
        def __enter__(self):
            self.caught = pytest.raises(kind).__enter__()
            return self

        def __exit__(self, error_type, error, trace):
            assert error is not None, f"nothing raised, {code} expected"
            assert isinstance(error, kind), error
            assert error.code == code, f"{error.code}: {error}"
            assert error.exit_code == 3
            return True

    return Expect()


def test_a_missing_file(tmp_path):
    with refusal("E-IN-101"):
        open_scene(tmp_path / "none.tif")


def test_a_folder(tmp_path):
    with refusal("E-IN-102"):
        open_scene(tmp_path)


@pytest.mark.timeout(5)
def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.tif")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s.tif"))
        for path in (tmp_path / "fifo.tif", tmp_path / "s.tif", "/dev/null"):
            with refusal("E-IN-102"):
                open_scene(path)


def test_an_empty_file(tmp_path):
    (tmp_path / "a.tif").touch()
    with refusal("E-IN-103"):
        open_scene(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "content", [b"north,south\n1,2\n", b"<html></html>", b"\x00\x01\x02" * 50, b"PK\x03\x04" + b"\x00" * 60]
)
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with refusal("E-IN-104"):
        open_scene(path)


def test_a_vrt_in_disguise_does_not_show_another_file(tmp_path):
    canary = write_tiff(tmp_path / "canary.tif", noise(1, 4, 4, dtype="uint8"))
    path = tmp_path / "scene.tif"
    path.write_text(VRT.format(canary.name))
    with pytest.raises(InputError, match=r"VRT.*--allow-driver VRT") as caught:
        open_scene(path)
    assert caught.value.code == "E-IN-104"


def test_a_vrt_opens_when_its_driver_is_allowed(tmp_path):
    canary = write_tiff(tmp_path / "a.tif", noise(1, 4, 4, dtype="uint8"))
    path = tmp_path / "scene.vrt"
    path.write_text(VRT.format(canary.name))
    scene = open_scene(path, drivers=(*DEFAULT_DRIVERS, "VRT"))
    np.testing.assert_array_equal(scene.read().data, noise(1, 4, 4, dtype="uint8"))


def test_python_in_a_vrt_never_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    write_tiff(tmp_path / "a.tif", noise(1, 4, 4, dtype="uint8"))
    code = f"import pathlib\ndef f(*args, **kw): pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    (tmp_path / "scene.vrt").write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1" '
        'subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType>'
        f"<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode><![CDATA[{code}]]>"
        '</PixelFunctionCode><SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(InputError):
        open_scene(tmp_path / "scene.vrt", drivers=("VRT",)).read()
    assert not (tmp_path / "ran").exists()


def test_an_image_named_tif_opens_by_its_content_and_says_so(tmp_path):
    png = write_tiff(
        tmp_path / "a.png", noise(1, 6, 7, dtype="uint8"), transform=Affine.identity(), crs=None, driver="PNG"
    )
    png = png.rename(tmp_path / "b.tif")
    scene = open_scene(png)
    assert "PNG" in scene.warnings[0]
    np.testing.assert_array_equal(scene.read().data, noise(1, 6, 7, dtype="uint8"))
    with refusal("E-IN-104"):
        open_scene(png, drivers=("GTiff",))


@pytest.mark.parametrize(
    "layout", [{"tiled": True, "blockxsize": 16, "blockysize": 16}, {"compress": "deflate"}]
)
def test_a_truncated_file_is_refused_or_its_missing_rows_are_named(tmp_path, layout):
    data = noise(2, 64, 64)
    whole = write_tiff(tmp_path / "whole.tif", data, **layout).read_bytes()
    path, seen = tmp_path / "cut.tif", set()
    for percent in range(1, 100, 3):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(InputError) as caught:
            open_scene(path).read()
        seen.add(caught.value.code)
        assert caught.value.exit_code == 3
        assert str(path) in str(caught.value)
    assert "E-IN-106" in seen
    assert seen <= {"E-IN-104", "E-IN-105", "E-IN-106"}


def test_whole_blocks_of_a_truncated_file_are_read(tmp_path):
    data = noise(1, 64, 64)
    path = write_tiff(tmp_path / "a.tif", data, tiled=True, blockxsize=16, blockysize=16)
    path.write_bytes(path.read_bytes()[: 16 * 16 * 2 * 12])
    scene = open_scene(path)
    np.testing.assert_array_equal(scene.read(window=Window(0, 0, 16, 16)).data, data[:, :16, :16])
    with pytest.raises(InputError, match="rows 48 to 64, columns 0 to 64") as caught:
        scene.read(window=Window(0, 48, 64, 16))
    assert caught.value.code == "E-IN-106"
    assert isinstance(caught.value.__cause__, rasterio.errors.RasterioError)


def test_a_file_gone_since_it_was_opened(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 9, 9))
    scene = open_scene(path)
    path.unlink()
    with refusal("E-IN-105"):
        scene.read()


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_raise_errors_of_ours_or_none(tmp_path, seed):
    rng = np.random.default_rng(seed)
    whole = write_tiff(tmp_path / "a.tif", noise(2, 32, 40), compress="deflate", nodata=0).read_bytes()
    path = tmp_path / "b.tif"
    for _ in range(20):
        content = bytearray(whole)
        for place in rng.integers(8, len(whole), 4):
            content[place] = rng.integers(0, 256)
        path.write_bytes(bytes(content))
        with contextlib.suppress(InputError):
            open_scene(path).read(window=Window(0, 0, 30, 30))


def test_descriptions_in_another_encoding_are_left_out_and_said(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(2, 4, 5), descriptions=("zzzz", "yyyy"))
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"gr\xfcn"))
    scene = open_scene(path)
    assert scene.bands == ("b1", "b2")
    assert "UTF-8" in scene.warnings[0]


def test_complex_pixels(tmp_path):
    with refusal("E-IN-108"):
        open_scene(write_tiff(tmp_path / "a.tif", noise(1, 4, 4).astype("complex64")))


def test_a_file_without_bands():
    with refusal("E-IN-107"):
        inspect(SimpleNamespace(dtypes=()), "a.tif")


def test_a_damaged_crs():
    class Damaged(SimpleNamespace):
        @property
        def crs(self):
            raise rasterio.errors.CRSError("the WKT ends early")

    with refusal("E-CRS-104", CRSError):
        inspect(Damaged(dtypes=("uint8",)), "a.tif")


def test_a_name_no_file_can_have():
    with refusal("E-IN-109"):
        open_scene("a\0.tif")


def test_ground_control_points_only(tmp_path):
    gcps = [GroundControlPoint(r, c, 500_000 + c, 5_000_000 - r) for r, c in ((0, 0), (0, 9), (9, 0), (9, 9))]
    path = write_tiff(tmp_path / "a.tif", noise(1, 10, 10), transform=Affine.identity(), gcps=gcps)
    with pytest.raises(CRSError, match=r"ground control points.*gdalwarp") as caught:
        open_scene(path)
    assert caught.value.code == "E-CRS-101"


def test_files_with_and_without_crs(tmp_path):
    paths = [write_tiff(tmp_path / f"{crs}.tif", noise(1, 9, 9), crs=crs) for crs in ("EPSG:32633", None)]
    with refusal("E-CRS-102", CRSError):
        open_scene(paths)
    assert len(open_scene(paths, src_crs="EPSG:32633").bands) == 2


def test_files_of_different_size_without_a_place(tmp_path):
    paths = [
        write_tiff(tmp_path / f"{n}.tif", noise(1, n, 9), transform=Affine.identity(), crs=None)
        for n in (8, 9)
    ]
    with refusal("E-GRID-102", GridError):
        open_scene(paths)


def test_files_without_common_ground(tmp_path):
    here = write_tiff(tmp_path / "a.tif", noise(1, 9, 9))
    far = write_tiff(tmp_path / "b.tif", noise(1, 9, 9), transform=north_up(x=ORIGIN[0] + 5000))
    zone = write_tiff(tmp_path / "c.tif", noise(1, 9, 9), crs="EPSG:32650")
    with refusal("E-GRID-103", GridError):
        open_scene([here, far])
    with pytest.raises(CRSError, match=r"EPSG:32650.*EPSG:32633") as caught:
        open_scene([here, zone])
    assert caught.value.code == "E-CRS-103"


def test_a_transform_without_area(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 9, 9), transform=Affine(10, 0, 0, 20, 0, 0))
    with pytest.raises(GridError, match="no area") as caught:
        open_scene(path)
    assert caught.value.path == str(path)


def test_a_transform_that_cannot_tell_pixels_apart(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 9, 9), transform=Affine(1e-12, 0, 1e9, 0, -1e-12, 1e9))
    with refusal("E-GRID-104", GridError):
        open_scene(path)


def test_a_crs_without_a_transform_is_said(tmp_path):
    scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 9, 9), transform=Affine.identity()))
    assert "no transform" in scene.warnings[0]


def test_a_giant_is_opened_and_read_in_part_at_once(tmp_path):
    path = tmp_path / "giant.tif"
    options = {
        "driver": "GTiff",
        "count": 3,
        "dtype": "uint16",
        "crs": "EPSG:32633",
        "transform": north_up(1.0),
    }
    blocks = {"tiled": True, "blockxsize": 4096, "blockysize": 4096, "SPARSE_OK": True, "BIGTIFF": "YES"}
    with rasterio.open(path, "w", height=1_000_000, width=1_000_000, **options, **blocks):
        pass
    start = time.perf_counter()
    scene = open_scene(path)
    assert scene.read(window=Window(900_000, 900_000, 100, 100)).valid.all()
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "name", ["a b.tif", "é漢.tif", "-x.tif", "a#b%20c.tif", "x" * 200 + ".tif", "a'\"<.tif"]
)
def test_odd_names_are_names(tmp_path, name):
    scene = open_scene(write_tiff(tmp_path / name, noise(1, 4, 5)))
    np.testing.assert_array_equal(scene.read().data, noise(1, 4, 5))
