"""What is known of the DSTL contest (Kaggle, 2016) and holds for every copy of its folder: names, numbers, twins.

Sources: the data page as copied in Moshiasri/Elrond README.md; ground shown twice and tiles moved in mid-contest
from gecrooks/dstlengine and jiangxu87/dstl_unet; names of the GeoJSON files from public solutions that agree on them
(such as gecrooks/dstlengine). Wavelengths and classes stand in `data_specs` (``dstl_worldview3`` and ``dstl``).

Rejected: reading the order of bands from the TIFF tags of the files, which is wrong for the multispectral one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from satseg.specs import ClassSpec, class_spec

Product: TypeAlias = Literal["rgb", "P", "M", "A"]
PRODUCTS: tuple[Product, ...] = ("rgb", "P", "M", "A")
"""Three bands, panchromatic, multispectral, short-wave infrared; the order of bands in a tile's scene."""
SENSOR = "dstl_worldview3"
"""The sensor spec with the 20 bands of a tile; ``dstl`` is the class list, and no two documents have one name."""
BANDS: Mapping[Product, tuple[str, ...]] = MappingProxyType(
    {
        "rgb": ("rgb_red", "rgb_green", "rgb_blue"),
        "P": ("pan",),
        "M": ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir1", "nir2"),
        "A": ("swir1", "swir2", "swir3", "swir4", "swir5", "swir6", "swir7", "swir8"),
    }
)
"""Names of each file's bands in its true order, whatever its tags say."""
DTYPE = "uint16"
"""Of all files; 11 bits of it are used, 14 of SWIR."""
GSD_M = 0.31
"""Side of a pixel of the three-band file on the ground."""
CLASS_NUMBERS = tuple(range(1, 11))
IMAGE_ID = re.compile(r"(6[01]\d0)_([0-4])_([0-4])")
"""Region, row and column of a tile in its mosaic of 5 x 5."""
SAME_GROUND: Mapping[str, str] = MappingProxyType({"6140": "6110", "6130": "6020", "6150": "6030"})
"""Regions that show the ground of another one at another time."""
MOVED = frozenset({"6010_1_2", "6040_4_4", "6070_2_3", "6100_2_2"})
"""Tiles that went from test to train in mid-contest: still rows of the sample submission, to be left empty."""
SCORED = (
    "6010_3_0", "6010_4_3", "6020_0_0", "6020_1_1", "6020_2_2", "6030_1_1", "6030_1_4", "6040_4_2",
    "6050_1_3", "6050_2_0", "6060_1_1", "6060_2_0", "6060_2_2", "6060_4_4", "6070_0_4", "6080_2_0",
    "6080_2_2", "6090_2_0", "6090_2_1", "6090_2_3", "6100_1_0", "6100_3_3", "6110_2_0", "6120_0_4",
    "6120_2_3", "6120_3_4", "6140_0_3", "6150_0_1", "6150_4_1", "6160_0_1", "6160_3_2", "6170_4_2",
)  # fmt: skip
"""The tiles of the sample submission that count; the other 393 are decoys (ternaus/kaggle_dstl_submission)."""
SAMPLE_ROWS = 4290
"""Rows of the contest's own sample submission: 429 tiles, ten classes."""
GEOJSON_CLASSES: Mapping[str, int] = MappingProxyType(
    {
        "001_MM_L2_LARGE_BUILDING": 1,
        "001_MM_L3_RESIDENTIAL_BUILDING": 1,
        "001_MM_L3_NON_RESIDENTIAL_BUILDING": 1,
        "001_MM_L5_MISC_SMALL_STRUCTURE": 2,
        "002_TR_L3_GOOD_ROADS": 3,
        "002_TR_L4_POOR_DIRT_CART_TRACK": 4,
        "002_TR_L6_FOOTPATH_TRAIL": 4,
        "006_VEG_L2_WOODLAND": 5,
        "006_VEG_L3_HEDGEROWS": 5,
        "006_VEG_L5_GROUP_TREES": 5,
        "006_VEG_L5_STANDALONE_TREES": 5,
        "007_AGR_L2_CONTOUR_PLOUGHING_CROPLAND": 6,
        "007_AGR_L6_ROW_CROP": 6,
        "008_WTR_L3_WATERWAY": 7,
        "008_WTR_L2_STANDING_WATER": 8,
        "003_VH_L4_LARGE_VEHICLE": 9,
        "003_VH_L5_SMALL_VEHICLE": 10,
        "003_VH_L6_MOTORBIKE": 10,
    }
)
"""The finer class that a file of ``train_geojson_v3/ID/`` holds, and which of the ten it counts as."""


def dstl_classes() -> ClassSpec:
    """Return the ten classes with names and numbers, from the class list ``dstl``."""
    return class_spec("dstl")


def class_names() -> Mapping[int, str]:
    """Return the name of each class number."""
    return {item.id: item.name for item in dstl_classes().classes}


def ground_of(image_id: str) -> str:
    """Return the region whose ground the tile lies on: regions shown twice have one name.

    An id of another form is ground of its own.
    """
    match = IMAGE_ID.fullmatch(image_id)
    return SAME_GROUND.get(match[1], match[1]) if match else image_id


def tile_ground_of(image_id: str) -> str:
    """Return the place of the tile: ground, row and column, so that only twins share one."""
    match = IMAGE_ID.fullmatch(image_id)
    return f"{ground_of(image_id)}_{match[2]}_{match[3]}" if match else image_id


def twins(image_ids: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of two and more among `image_ids` that show one place, sorted."""
    groups: dict[str, list[str]] = {}
    for image_id in sorted(set(image_ids)):
        groups.setdefault(tile_ground_of(image_id), []).append(image_id)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
