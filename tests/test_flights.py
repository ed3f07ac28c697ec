"""Files of one flight: which they are, and that they are moved alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine

import satseg
from satseg.errors import UsageError
from satseg.imagery import flights as module
from satseg.imagery.flights import flights
from satseg.imagery.levels import ALIKE, Span, Tone, all_near, as_flown, tones
from satseg.learning.detection.job import DetectOptions
from tests.factories import write_tiff


def tile(folder, name, x, y, *, shape=(9, 7), value=50, bands=2, crs="EPSG:32633", pixel=0.5, turn=0.0, dtype=np.uint8):
    data = np.full((bands, *shape), value, dtype)
    where = Affine.translation(4e5 + x, 4e6 + y) @ Affine.rotation(turn) @ Affine.scale(pixel, -pixel)
    return satseg.open_scene(write_tiff(folder / f"{name}.tif", data, crs=crs, transform=where))


def groups(scenes):
    found = flights(scenes)
    return {frozenset(scene.name for scene in flight.scenes) for flight in found}


def test_files_of_one_kind_that_touch_are_of_one_flight(tmp_path):
    width, height = 7 * 0.5, 9 * 0.5
    chain = [tile(tmp_path, f"chain{n}", n * width, 0) for n in range(3)]
    corner = tile(tmp_path, "corner", 3 * width, -height)  # touches the last at a point
    crack = tile(tmp_path, "crack", 0, height + 0.2, pixel=0.503)  # under half a pixel away, pixels 0.6 % longer
    others = [
        tile(tmp_path, "gap", -width - 0.5, 0),  # a pixel away
        tile(tmp_path, "coarse", 0, height, pixel=0.51),
        tile(tmp_path, "grey", 0, height, bands=1),
        tile(tmp_path, "deep", 0, height, dtype=np.uint16),
        tile(tmp_path, "zone", 0, 0, crs="EPSG:32634"),
        *(tile(tmp_path, f"bare{n}", n * width, 0, crs=None) for n in range(2)),
    ]
    scenes = [chain[2], *others, chain[0], corner, crack, chain[1]]
    alone = {frozenset([one.name]) for one in others}
    assert groups(scenes) == alone | {frozenset(["chain0", "chain1", "chain2", "corner", "crack"])}
    one, other = flights(iter([chain[0], chain[1]]))
    assert one is other
    assert flights([]) == []


def test_files_that_cover_each_other_are_of_two_flights(tmp_path):
    monday, tuesday = (tile(tmp_path, name, 0, 0) for name in ("monday", "tuesday"))
    overlapping = tile(tmp_path, "overlapping", 3 * 0.5, 0)  # 4 of 7 columns
    lapping = tile(tmp_path, "lapping", 4 * 0.5, 0)  # 3 of 7
    assert len(groups([monday, tuesday, overlapping])) == 3
    assert groups([monday, lapping]) == {frozenset(["monday", "lapping"])}


def test_turned_files_touch_by_their_outlines(tmp_path):
    first, beside = (tile(tmp_path, f"turned{n}", *at, turn=30) for n, at in enumerate([(0, 0), (3.03, 1.75)]))
    within_the_box = tile(tmp_path, "far", 0.0, -3.0, turn=30, shape=(2, 1))
    assert groups([first, beside, within_the_box]) == {frozenset(["turned0", "turned1"]), frozenset(["far"])}


def test_what_is_no_open_scene_is_refused(tmp_path):
    scene = tile(tmp_path, "a", 0, 0)
    for wrong in ("a.tif", ["a.tif"], scene, [scene, tmp_path / "a.tif"]):
        with pytest.raises(UsageError, match="open scenes"):
            flights(wrong)
    with pytest.raises(UsageError, match="flight is a list"):
        DetectOptions(flight=[scene])


def test_of_a_large_flight_some_files_are_looked_at_once_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_FILES", 3)
    scenes = [tile(tmp_path, f"{n}", n * 3.5, 0) for n in range(7)]
    found, seen = flights(scenes), []
    assert len(set(map(id, found))) == 1
    assert len(found[0].scenes) == 3
    assert flights(scenes[::-1])[0].scenes == found[0].scenes
    for key in ("one", "one", "other"):
        assert found[0].measured(key, lambda scene: seen.append(scene) or scene.name) == tuple(
            scene.name for scene in found[0].scenes
        )
    assert len(seen) == 6


def test_a_file_has_the_tone_of_its_flight_unless_it_is_of_another_light():
    room = [Span(-math.inf, math.inf, 10.0)]
    own, away = Tone((50.0,), 100), ALIKE * Tone((50.0,), 100).unsure * 10
    for common, taken in ((50 + 0.99 * away, True), (50 + 1.01 * away, False)):
        others = [Tone((value,), 70) for value in (common, common, common + 1e3, common, common - 1e3)]
        assert as_flown(own, [*others, None], room) == (Tone((common,), 5 * 70) if taken else own)
    assert as_flown(own, [None, own], room) == own


def test_scenes_learnt_from_have_the_tone_of_their_flight(tmp_path):
    bright = [tile(tmp_path, f"b{n}", n * 3.5, 0, value=value) for n, value in enumerate((50, 60, 61))]
    alone = tile(tmp_path, "alone", 100, 0, value=50)
    room = {name: Span(-math.inf, math.inf, 10.0) for name in alone.bands}
    found = tones([*bright, alone], room)
    assert [one.means[0] for one in found] == pytest.approx([60, 60, 60, 50])
    assert [one.pixels for one in found] == [3 * 63] * 3 + [63]


def test_files_of_one_flight_are_moved_alike(tmp_path):
    scenes = [tile(tmp_path, f"b{n}", n * 3.5, 0, value=value) for n, value in enumerate((50, 60, 61))]
    scenes.append(tile(tmp_path, "alone", 100, 0, value=50))
    near = all_near(scenes, {name: Span(100.0, 101.0, 10.0) for name in scenes[0].bands})
    moves = [
        float(after.read().data[0, 0, 0]) - before.read().data[0, 0, 0]
        for before, after in zip(scenes, near, strict=True)
    ]
    assert moves[:3] == pytest.approx([moves[0]] * 3, abs=1e-4)
    assert moves[0] > 5
    assert moves[3] == 0  # so small a scene by itself may be of the tone learnt
    assert all_near(scenes, {}) == scenes
