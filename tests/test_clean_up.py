"""The least polygon and hole of each class, as training takes them from the labels."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely

from satseg.imagery.cores import median_widths
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import open_scene
from satseg.learning.ground.grounds import CORE_SHARE, LARGEST_SPECK_PX, SURE_SHARE, with_clean_up
from satseg.learning.ground.split import Ground
from satseg.specs import ClassItem
from tests.factories import UTM, noise, north_up, write_tiff

GSD = 0.5
LEFT, TOP = 500_000.0, 4_000_000.0


def ground_with(tmp_path, shapes):
    path = write_tiff(tmp_path / "scene.tif", noise(1, 300, 420), transform=north_up(GSD, x=LEFT, y=TOP), crs=UTM)
    scene = open_scene(path)
    names = [name for name, _ in shapes]
    layer = geopandas.GeoDataFrame({"class_name": names}, geometry=[shape for _, shape in shapes], crs=UTM)
    return Ground(scene, LabelLayer.build(layer, scene.grid, sorted(set(names))))


def items(*names):
    return [ClassItem(name=name, id=number + 1, color="#ff0000") for number, name in enumerate(sorted(names))]


def cleaned(classes, ground):
    return with_clean_up(classes, [ground], compact=median_widths([(ground.scene.grid, ground.labels)]))


def roofs(sides):
    return [
        ("roof", shapely.box(x := LEFT + 2 + 20 * (i % 9), y := TOP - 140 + 20 * (i // 9), x + side, y + side))
        for i, side in enumerate(sides)
    ]


def road(width):
    return ("road", shapely.LineString([(LEFT, TOP - 3), (LEFT + 200, TOP - 3)]).buffer(width / 2))


def test_of_compact_objects_what_is_smaller_than_the_small_ones_is_dropped(tmp_path):
    sides = np.linspace(4, 16, 40)
    roof, = cleaned(items("roof"), ground_with(tmp_path, roofs(sides)))
    # the grid scale factor of UTM's central meridian makes areas on the ground larger by 0.08 %
    assert roof.min_area_m2 == pytest.approx(np.percentile(sides**2, 5), rel=2e-3)
    shares = (SURE_SHARE * roof.min_area_m2, CORE_SHARE * roof.min_area_m2)
    assert (roof.min_sure_m2, roof.min_core_m2) == pytest.approx(shares)
    assert roof.min_hole_m2 == pytest.approx(min(LARGEST_SPECK_PX * GSD**2, roof.min_area_m2 / 2), rel=2e-3)


def test_of_long_things_only_specks_are_dropped(tmp_path):
    found = cleaned(items("road", "roof"), ground_with(tmp_path, [road(4), *roofs([9.0] * 12)]))
    by_name = {item.name: item for item in found}
    assert by_name["road"].min_area_m2 == pytest.approx(LARGEST_SPECK_PX * GSD**2, rel=2e-3)
    assert by_name["roof"].min_area_m2 == pytest.approx(81 / 2, rel=2e-3)  # all alike: half of one
    assert by_name["road"].min_sure_m2 == 0


def test_sizes_of_a_class_spec_are_kept(tmp_path):
    given = [item.model_copy(update={"min_area_m2": 3.0}) for item in items("roof")]
    kept, = cleaned(given, ground_with(tmp_path, roofs([9.0] * 12)))
    assert (kept.min_area_m2, kept.min_sure_m2) == (3.0, 0.0)
    given = [ClassItem(name="roof", id=1, color="#ff0000", min_sure_m2=0.0)]
    kept, = cleaned(given, ground_with(tmp_path, roofs([9.0] * 12)))
    assert (kept.min_area_m2, kept.min_sure_m2) == (pytest.approx(81 / 2, rel=2e-3), 0.0)
