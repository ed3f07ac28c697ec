"""File names tell sensor and bands: those of providers and data sets, plain band names, never masks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.specs import detect_sensor, list_sensors, sensor_spec

SENSORS = list_sensors()
LANDSAT8 = "LC08_L1TP_016037_20170813_20170814_01_RT_"
FILES = [
    ("sentinel2_l2a", "T32TQM_20180510T094031_B02_10m.jp2", "blue"),
    ("sentinel2_l2a", "GRANULE/R20m/L2A_T32TQM_20170617T113321_B8A_20m.jp2", "nir_narrow"),
    ("sentinel2_l2a", "S2A_MSIL2A_20170617T113321_36_85_B8A.tif", "nir_narrow"),
    ("sentinel2_l2a", "2024-05-10-00:00_2024-05-10-23:59_Sentinel-2_L2A_B11_(Raw).tiff", "swir1"),
    ("sentinel2_l1c", "T32TQM_20180510T094031_B10.jp2", "cirrus"),
    ("sentinel2_l1c", "2018-10-13, Sentinel-2B L1C, B08.tiff", "nir"),
    ("landsat89_oli", LANDSAT8 + "B5.TIF", "nir"),
    ("landsat89_oli", LANDSAT8 + "B10.TIF", "thermal1"),
    ("landsat89_oli", "LC09_L2SP_016037_20220813_20230401_02_T1_SR_B4.TIF", "red"),
    ("landsat89_oli", "LC80160372017225LGN00_B8.TIF", "pan"),
    ("landsat7_etm", "LE07_L1TP_016035_20000331_20170212_01_T1_B6_VCID_2.TIF", "thermal_high_gain"),
    ("landsat7_etm", "LE70160352000091EDC00_B7.TIF", "swir2"),
    ("landsat7_etm", "lsat7_2000_61.tif", "thermal_low_gain"),
    ("landsat7_etm", "lsat7_2000_80.tif", "pan"),
    ("landsat5_tm", "LT05_L1TP_016035_19871014_20160930_01_T1_B6.TIF", "thermal"),
    ("landsat5_tm", "lsat5_1987_70.tif", "swir2"),
    ("worldview3", "6010_1_2_P.tif", "pan"),
    ("worldview3", "PAN_AOI_4_Shanghai_img1920.tif", "pan"),
    ("pleiades", "IMG_PHR1A_P_201202250025329_ORT_1234_R1C1.TIF", "pan"),
]
STACKS = [
    ("worldview3", "MUL_AOI_4_Shanghai_img1920.tif", 8),
    ("worldview3", "MUL-PanSharpen_AOI_2_Vegas_img1.tif", 8),
    ("worldview2", "8band_AOI_1_RIO_img5000.tif", 8),
    ("planetscope_4band", "20200101_101010_1003_3B_AnalyticMS_SR.tif", 4),
    ("planetscope_8band", "20220101_101010_10_2413_3B_AnalyticMS_SR_8b.tif", 8),
    ("pleiades", "IMG_PHR1B_PMS_201202250025329_ORT_1234_R1C1.TIF", 4),
    ("naip_rgbn", "m_3610441_ne_13_060_20180620.tif", 4),
]
NOT_IMAGERY = [
    LANDSAT8 + "BQA.TIF", LANDSAT8 + "MTL.txt", LANDSAT8 + "B5.TIF.aux.xml", LANDSAT8 + "QA_PIXEL.TIF",
    "LC09_L2SP_016037_20220813_20230401_02_T1_SR_QA_AEROSOL.TIF",
    "LC09_L2SP_016037_20220813_20230401_02_T1_ST_QA.TIF",
    "T32TQM_20180510T094031_SCL_20m.jp2", "T32TQM_20180510T094031_AOT_10m.jp2",
    "T32TQM_20180510T094031_TCI.jp2",
    "S2A_MSIL2A_20170617T113321_36_85_labels_metadata.json", "20200101_101010_1003_3B_AnalyticMS_DN_udm.tif",
    "20200101_101010_1003_3B_udm2.tif", "landclass96.tif", "training_data.gtif", "clc_2018_lataseno.tif",
    "", ".tif",    "red", "red.txt", "colored.tif", "infrared.tif",
]  # fmt: skip


@pytest.mark.parametrize(("sensor", "filename", "band"), FILES)
def test_names_of_band_files_tell_sensor_and_band(sensor: str, filename: str, band: str) -> None:
    assert sensor_spec(sensor).match_file(filename) == (band,)
    assert sensor_spec(sensor).match_file("C:\\data\\" + filename.swapcase()) == (band,)
    assert detect_sensor([filename]) is sensor_spec(sensor)


@pytest.mark.parametrize(("sensor", "filename", "count"), STACKS)
def test_names_of_stacks_tell_sensor_and_order(sensor: str, filename: str, count: int) -> None:
    spec = sensor_spec(sensor)
    assert detect_sensor([filename]) is spec
    assert spec.match_file(filename) == spec.order_for(count)


@pytest.mark.parametrize("filename", NOT_IMAGERY)
def test_quality_bands_masks_and_side_files_are_no_imagery(filename: str) -> None:
    assert [name for name in SENSORS if sensor_spec(name).match_file(filename) is not None] == []
    assert detect_sensor([filename]) is None


def test_single_letters_and_plain_band_names_count_once_the_sensor_is_said() -> None:
    spec = sensor_spec("wv3")
    for letter, band in zip("RGBN", ("red", "green", "blue", "nir1"), strict=True):
        assert spec.match_file(f"vegas2_wv3_{letter}.tif") == (band,)
        assert detect_sensor([f"vegas2_wv3_{letter}.tif"]) is None
    assert spec.match_file("red.tif") == ("red",)
    assert spec.match_file("scene red_edge.tif") == ("red_edge",)  # the longer name wins over none at all
    assert sensor_spec("sentinel2").match_file("B8A.tif") == ("nir_narrow",)
    assert detect_sensor(["B8A.tif"]) is None
    assert spec.match_file("16OCT01173043-M2AS_R1C1-056.TIF") == spec.order_for(8)
    assert detect_sensor(["16OCT01173043-M2AS_R1C1-056.TIF"]) is None


def test_sensor_is_detected_only_when_every_file_is_of_that_one() -> None:
    bands = [f"{LANDSAT8}B{number}.TIF" for number in range(1, 12)]
    assert detect_sensor(bands) is sensor_spec("landsat8")
    assert detect_sensor([*bands, LANDSAT8 + "BQA.TIF"]) is None
    assert detect_sensor([*bands, "lsat7_2000_10.tif"]) is None
    assert detect_sensor([]) is None
    held = [sensor_spec("landsat8").match_file(name) for name in bands]
    assert held == [(name,) for name in sensor_spec("landsat8").order_for(11) or ()]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.sampled_from([".tif", ".TIF", ".jp2", "", ".txt"]))
def test_any_file_name_gives_bands_of_the_sensor_or_nothing(stem: str, suffix: str) -> None:
    for name in ("worldview3", "sentinel2_l1c", "landsat7_etm", "rgb"):
        spec = sensor_spec(name)
        held = spec.match_file(stem + suffix)
        assert held is None or set(held) <= set(spec.band_names)
        assert held is not None or not spec.recognizes(stem + suffix)


@pytest.mark.data
def test_real_sentinel2_and_landsat_files_hold_the_band_their_name_says(data_dir: Path) -> None:
    numbered = [
        ("s2_landsat/bigearthnet_tiny/*", "sentinel2_l2a", 12),
        ("s2_landsat/opengeo_s2", "sentinel2_l1c", 8),
        ("readers/landsat8_files", "landsat89_oli", 11),
    ]
    for pattern, sensor, count in numbered:
        spec = sensor_spec(sensor)
        folders = list(data_dir.glob(pattern))
        assert folders
        for folder in folders:
            found = {path.name: spec.match_file(path.name) for path in folder.iterdir()}
            files = {name: held for name, held in found.items() if held}
            assert len(files) == count
            assert detect_sensor(list(files)) is spec
            for name, (band,) in files.items():
                number = re.findall(r"B\d+A?", name)[-1]
                assert number in spec.band(band).aliases
            rest = {name for name in found if ".tif" in name.lower() and name not in files}
            assert rest <= {LANDSAT8 + "BQA.TIF"}


@pytest.mark.data
def test_real_nc_landsat7_and_worldview_files_hold_what_is_known_of_them(data_dir: Path) -> None:
    folder = data_dir / "s2_landsat" / "nc_landsat7"
    bands = sorted(path.name for path in folder.glob("lsat7_*.tif"))
    etm = sensor_spec("landsat7")
    assert detect_sensor(bands) is etm
    assert [etm.match_file(name) for name in bands] == [
        ("blue",), ("green",), ("red",), ("nir",), ("swir1",), ("thermal_low_gain",), ("swir2",), ("pan",),
    ]  # fmt: skip
    assert etm.match_file("landclass96.tif") is None
    pair = sorted(path.name for path in (data_dir / "wv_spacenet").glob("*_AOI_4_*.tif"))
    assert detect_sensor(pair) is sensor_spec("worldview3")
    assert [len(sensor_spec("worldview3").match_file(name) or ()) for name in pair] == [8, 1]
