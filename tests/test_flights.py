"""Files of one flight: which they are, and that they are moved alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine

import satseg
from satseg.imagery import flights as module
from satseg.imagery.flights import flights
from satseg.imagery.levels import ALIKE, Span, Tone, as_flown, tones
from tests.factories import write_tiff


def tile(folder, name, x, y, *, shape=(9, 7), value=50, bands=2, crs="EPSG:32633", pixel=0.5, turn=0.0):
    data = np.full((bands, *shape), value, np.uint8)
    where = Affine.translation(4e5 + x, 4e6 + y) @ Affine.rotation(turn) @ Affine.scale(pixel, -pixel)
    return satseg.open_scene(write_tiff(folder / f"{name}.tif", data, crs=crs, transform=where))


def groups(scenes):
    found = flights(scenes)
    return {frozenset(scene.name for scene in flight.scenes) for flight in found}


def test_files_of_one_kind_that_touch_are_of_one_flight(tmp_path):
    width, height = 7 * 0.5, 9 * 0.5
    chain = [tile(tmp_path, f"chain{n}", n * width, 0) for n in range(3)]
    corner = tile(tmp_path, "corner", 3 * width, -height)  # touches the last at a point
    gap = tile(tmp_path, "gap", -width - 0.5, 0)  # a pixel away
    others = [
        tile(tmp_path, "coarse", 0, height, pixel=0.75),
        tile(tmp_path, "grey", 0, height, bands=1),
        tile(tmp_path, "zone", 0, 0, crs="EPSG:32634"),
        *(tile(tmp_path, f"bare{n}", n * width, 0, crs=None) for n in range(2)),
    ]
    scenes = [gap, chain[2], *others, chain[0], corner, chain[1]]
    alone = {frozenset([one.name]) for one in (gap, *others)}
    assert groups(scenes) == alone | {frozenset(["chain0", "chain1", "chain2", "corner"])}
    one, other = flights([chain[0], chain[1]])
    assert one is other
    assert flights([]) == []


def test_turned_files_touch_by_their_outlines(tmp_path):
    first, beside = (tile(tmp_path, f"turned{n}", *at, turn=30) for n, at in enumerate([(0, 0), (3.03, 1.75)]))
    within_the_box = tile(tmp_path, "far", 0.0, -3.0, turn=30, shape=(2, 1))
    assert groups([first, beside, within_the_box]) == {frozenset(["turned0", "turned1"]), frozenset(["far"])}


def test_of_a_large_flight_some_files_are_looked_at_once_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_FILES", 3)
    scenes = [tile(tmp_path, f"{n}", n * 3.5, 0) for n in range(7)]
    found, seen = flights(scenes), []
    assert len(set(map(id, found))) == 1
    assert len(found[0].scenes) == 3
    first, other = object(), object()
    for whose in (first, first, other):
        assert found[0].each(whose, lambda scene: seen.append(scene) or scene.name) == tuple(
            scene.name for scene in found[0].scenes
        )
    assert len(seen) == 6


def test_a_file_has_the_tone_of_its_flight_unless_it_is_of_another_light():
    room = [Span(-math.inf, math.inf, 10.0)]
    own, size = Tone((50.0,), 100), 100
    away = ALIKE * own.unsure * 10
    for common, taken in ((50 + 0.99 * away, True), (50 + 1.01 * away, False)):
        others = [Tone((common,), size), Tone((common + 1e3,), size), Tone((common - 1e3,), size), None]
        assert as_flown(own, others, room) == (Tone((common,), 3 * size) if taken else own)
    assert as_flown(own, [None, own], room) == own


def test_scenes_learnt_from_have_the_tone_of_their_flight(tmp_path):
    bright = [tile(tmp_path, f"b{n}", n * 3.5, 0, value=value) for n, value in enumerate((50, 60, 61))]
    alone = tile(tmp_path, "alone", 100, 0, value=50)
    room = {name: Span(-math.inf, math.inf, 10.0) for name in alone.bands}
    found = tones([*bright, alone], room)
    assert [one.means[0] for one in found] == pytest.approx([60, 60, 60, 50])
    assert [one.pixels for one in found] == [3 * 63] * 3 + [63]
