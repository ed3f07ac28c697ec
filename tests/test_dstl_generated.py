"""The generated contest: the files of the original, its traps on purpose, its areas, the same from every side."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from satseg.errors import OutputError, UsageError
from satseg.synthetic.layout import Layout, Patch, rectangle
from satseg.synthetic.shortwave import CURVES, SWIR, SWIR_BANDS
from satseg.synthetic.spectra import MATERIALS, mixed_reflectance
from satseg.tasks.dstl.check import check_folder
from satseg.tasks.dstl.facts import GEOJSON_CLASSES, GSD_M, MOVED, SCORED, class_names
from satseg.tasks.dstl.folder import ContestFolder
from satseg.tasks.dstl.frame import Frame
from satseg.tasks.dstl.generated.contest import SPOILT, generate_contest, make_tile
from satseg.tasks.dstl.generated.country import country_of, look_of
from satseg.tasks.dstl.generated.ground import Ground, add_traffic, plan_ground
from satseg.tasks.dstl.generated.images import area_mean, photograph
from satseg.tasks.dstl.generated.labels import spoilt
from satseg.tasks.dstl.generated.roster import (
    FULL_SIZE,
    LABELLED,
    MEAN_SHARES,
    TILE_M2,
    TILES_WITH,
    Rarities,
    Recipe,
    Sizes,
    TileId,
    all_ids,
    even_counts,
    rarities_of,
    recipe_of,
    shifts_of,
    sizes_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SIZE = (165, 190)
NAMES = ("6010_1_2", "6110_1_2", "6140_1_2", "6070_0_4")


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    return generate_contest(tmp_path_factory.mktemp("contest") / "dstl", seed=4, size=SIZE, tiles=NAMES)


def table(path):
    before = csv.field_size_limit(10**9)
    try:
        with open(path, newline="") as file:
            return list(csv.reader(file))
    finally:
        csv.field_size_limit(before)


def labels(path):
    return {(row[0], int(row[1])): shapely.from_wkt(row[2]) for row in table(path)[1:]}


def test_the_roster_is_that_of_the_original():
    names = {str(tile) for tile in all_ids()}
    assert len(names) == 450
    assert (len(LABELLED), len(SCORED), len({*LABELLED, *SCORED} & names)) == (25, 32, 57)
    assert set(MOVED) <= set(LABELLED)
    assert all(str(TileId.parse(name)) == name for name in names)
    unlabelled = {name[:4] for name in SCORED} - {name[:4] for name in LABELLED}
    assert unlabelled == {"6020", "6030", "6050", "6080"}


def test_recipes_of_the_labelled_tiles_have_the_areas_of_the_original():
    shares = np.array([recipe_of(TileId.parse(name), 0).shares for name in LABELLED])
    assert 100 * shares.mean(0) == pytest.approx(MEAN_SHARES, rel=0.25)
    assert 100 * shares.mean(0)[:8] == pytest.approx(MEAN_SHARES[:8], rel=0.03)
    assert tuple((shares > 0).sum(0)) == TILES_WITH


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_class_is_there_to_be_learnt_and_scored(seed):
    for names in (LABELLED, SCORED):
        tiles = [TileId.parse(name) for name in names]
        area = 335 * 340 * GSD_M**2
        rare = [rarities_of(tile, seed, area) for tile in tiles]
        assert min(sum(item.ponds for item in rare), sum(item.large for item in rare)) >= 1
        assert sum(item.small for item in rare) >= 1
        shares = np.array([recipe_of(tile, seed).shares for tile in tiles])
        assert (shares[:, :8] > 0.01).any(0).sum() >= 7


def test_full_size_tiles_hold_rare_things_in_the_original_numbers():
    rare = [rarities_of(TileId.parse(name), 0, TILE_M2) for name in LABELLED]
    large, small = (sum(getattr(item, kind) for item in rare) for kind in ("large", "small"))
    assert large == pytest.approx(25 * TILE_M2 * 3.7e-5 / 15, rel=0.25)
    assert small == pytest.approx(25 * TILE_M2 * 1.52e-4 / 7, rel=0.25)


@example(expected=[5e-324], start=0.0, least=1)
@given(
    expected=st.lists(st.floats(0, 5), min_size=1, max_size=40), start=st.floats(0, 0.999), least=st.integers(0, 3)
)
def test_even_counts_keep_the_sum_and_stay_by_what_was_expected(expected, start, least):
    counts, total = even_counts(expected, start, least), math.fsum(expected)
    assert all(count >= 0 for count in counts)
    if total >= least:
        assert abs(sum(counts) - total) <= 1.0
        assert all(abs(count - want) <= 1.0 + 1e-9 for count, want in zip(counts, expected, strict=True))
    if least and total:
        assert any(counts)


def test_shifts_are_those_measured_on_the_original():
    shifts = [shifts_of(tile, 0) for tile in all_ids()]
    m, a = (np.array([math.hypot(*item[product]) for item in shifts]) for product in "MA")
    assert (np.median(m) / 4, np.percentile(m, 90) / 4) == pytest.approx((0.47, 1.52), rel=0.15)
    assert m.max() / 4 <= 2.75
    assert (np.median(a), np.percentile(a, 90)) == pytest.approx((19.7, 47.0), rel=0.15)
    directions = np.array([item["M"] for item in shifts])
    assert np.abs(np.median(directions, axis=0)).max() < 0.5


@pytest.mark.parametrize("size", [(335, 340), FULL_SIZE])
def test_sizes_are_in_no_whole_ratio_and_the_frame_is_the_official_one(size):
    everything = [sizes_of(tile, 0, size) for tile in all_ids()]
    assert len({sizes.rgb for sizes in everything}) > 10
    assert any(sizes.pan != sizes.rgb for sizes in everything)
    for sizes in everything:
        for axis in (0, 1):
            assert sizes.rgb[axis] / sizes.multi[axis] == pytest.approx(4, abs=0.06)
            assert sizes.rgb[axis] / sizes.swir[axis] == pytest.approx(25, abs=1.6)
        high, wide = sizes.rgb
        step_x, step_y = sizes.frame.steps("label")
        assert sizes.frame.x_max / step_x == pytest.approx(wide * wide / (wide + 1))
        assert sizes.frame.y_min / step_y == pytest.approx(high * high / (high + 1))
        assert step_x == pytest.approx(2.7007e-6, rel=2e-3)


def test_short_wave_curves_are_reflectances_of_the_same_materials():
    assert set(CURVES) == set(MATERIALS)
    assert all(len(curve) == len(SWIR_BANDS) and 0 < min(curve) <= max(curve) < 0.7 for curve in CURVES.values())
    for name in ("grass", "broadleaf", "conifer", "wheat"):
        curve = mixed_reflectance(name, bands=SWIR)
        assert curve[0] > curve[2] > curve[5] > curve[7]
    for name in ("river", "deep_water", "turbid_water", "pool"):
        assert max(CURVES[name]) <= 0.01
    assert max(CURVES["artificial_turf"]) < CURVES["lawn"][0]


@settings(max_examples=40, deadline=None)
@given(
    top=st.floats(0, 3), left=st.floats(0, 3), height=st.floats(2, 8), width=st.floats(2, 9),
    rows=st.integers(1, 7), cols=st.integers(1, 7), seed=st.integers(0, 99),
)  # fmt: skip
def test_area_means_keep_constants_ramps_and_totals(top, left, height, width, rows, cols, seed):
    box = (top, left, height, width)
    ramp = np.broadcast_to(np.arange(14, dtype=np.float32) + 0.5, (11, 14))
    planes = np.stack([np.full((11, 14), 3.0, np.float32), ramp])
    flat, slope = area_mean(planes, box, (rows, cols))
    assert flat == pytest.approx(np.full((rows, cols), 3.0), abs=1e-4)
    noise = np.random.default_rng(seed).random((1, 11, 14)).astype(np.float32)
    whole = area_mean(noise, box, (1, 1))[0, 0, 0]
    assert area_mean(noise, box, (rows, cols)).mean() == pytest.approx(whole, abs=1e-4)
    assert slope.mean() == pytest.approx(area_mean(planes, box, (1, 1))[1, 0, 0], abs=1e-4)


def test_area_means_of_whole_blocks_are_those_of_numpy():
    planes = np.random.default_rng(0).random((2, 12, 15)).astype(np.float32)
    blocks = planes.reshape(2, 4, 3, 5, 3).mean(axis=(2, 4))
    assert area_mean(planes, (0, 0, 12, 15), (4, 5)) == pytest.approx(blocks, abs=1e-6)


def test_what_rgb_shows_lies_off_by_the_shift_in_m_and_a():
    sizes = Sizes((160, 200), (160, 200), (40, 50), (8, 10), Frame(200, 160, 5.4e-4, -4.3e-4))
    boxes = [rectangle(25 + 9 * n, 12 + 7 * n, length=6 + n, width=5, angle=0.4 * n) for n in range(5)]
    layout = Layout(patches=tuple(Patch(box, "membrane", "lot") for box in boxes))
    look = look_of(6010, 0)
    still, moved = (
        photograph(np.random.default_rng(5), layout, look, sizes, {"M": shift, "A": shift})
        for shift in ((0.0, 0.0), (8.0, -4.0))
    )
    assert np.array_equal(still.rgb, moved.rgb)
    assert np.array_equal(still.pan, moved.pan)
    inner = moved.multi[:, 3:-3, 3:-3].astype(float)
    expected = still.multi[:, 4:-2, 1:-5].astype(float)
    assert np.abs(inner - expected).mean() < 0.35 * np.abs(inner - still.multi[:, 3:-3, 3:-3]).mean()
    assert not np.array_equal(still.swir, moved.swir)


def test_a_contest_has_the_files_of_the_original(contest):
    for name in NAMES:
        sizes = sizes_of(TileId.parse(name), 4, SIZE)
        for path, count, shape, most in (
            (f"three_band/{name}.tif", 3, sizes.rgb, 2047), (f"sixteen_band/{name}_P.tif", 1, sizes.pan, 2047),
            (f"sixteen_band/{name}_M.tif", 8, sizes.multi, 2047), (f"sixteen_band/{name}_A.tif", 8, sizes.swir, 16383),
        ):  # fmt: skip
            with rasterio.open(contest.folder / path) as image:
                assert (image.count, image.shape, set(image.dtypes)) == (count, shape, {"uint16"})
                assert image.crs is None
                assert image.transform.is_identity
                data = image.read()
                assert 0 < data.min() <= data.max() <= most
                assert (data.max() > 2047) == (most == 16383)
    with rasterio.open(contest.folder / f"sixteen_band/{NAMES[0]}_M.tif") as image:
        assert "6;2;3;7;4;8;5;9" in image.tags()["TIFFTAG_IMAGEDESCRIPTION"]


def test_tables_list_every_tile_though_few_have_images(contest):
    sizes = table(contest.folder / "grid_sizes.csv")
    assert sizes[0] == ["", "Xmax", "Ymin"]
    assert {row[0] for row in sizes[1:]} == {str(tile) for tile in all_ids()}
    assert len(sizes) == 451
    sample = table(contest.folder / "sample_submission.csv")
    assert len(sample) == 4291
    assert {row[0] for row in sample[1:]} & set(LABELLED) == set(MOVED)
    bounds = {row[0]: (float(row[1]), float(row[2])) for row in sizes[1:]}
    for name, _, text in sample[1::700]:
        whole = shapely.from_wkt(text)
        assert whole.geom_type == "Polygon"
        assert (whole.bounds[2], whole.bounds[1]) == bounds[name]


def test_labels_lie_on_a_lattice_in_the_frame_and_one_is_invalid_on_purpose(contest):
    found = labels(contest.folder / "train_wkt_v4.csv")
    assert len(found) == 30
    sizes = {row[0]: row[1:] for row in table(contest.folder / "grid_sizes.csv")}
    for (name, number), shape in found.items():
        assert shape.geom_type == "MultiPolygon"
        assert shape.is_valid == ((name, number) != SPOILT), (name, number)
        steps = shapely.get_coordinates(shape) * 1e6
        assert np.abs(steps - np.rint(steps)).max(initial=0) < 1e-3
        if not shape.is_empty:
            left, bottom, right, top = shape.bounds
            assert 0 <= left < right <= float(sizes[name][0])
            assert float(sizes[name][1]) <= bottom < top <= 0
    assert "MULTIPOLYGON EMPTY" in {row[2] for row in table(contest.folder / "train_wkt_v4.csv")}


def test_finer_classes_add_up_to_the_classes(contest):
    found = labels(contest.folder / "train_wkt_v4.csv")
    for name in ("6110_1_2", "6140_1_2"):
        pieces = {number: [] for number in range(1, 11)}
        for path in (contest.folder / "train_geojson_v3" / name).iterdir():
            layer = json.loads(path.read_text())
            pieces[GEOJSON_CLASSES[path.stem]] += [
                shapely.from_geojson(json.dumps(item["geometry"])) for item in layer["features"]
            ]
        for number, parts in pieces.items():
            whole = shapely.union_all(parts)
            assert whole.symmetric_difference(found[name, number]).area <= 0.06 * whole.area


def test_truth_of_scored_tiles_is_kept_aside(contest):
    hidden = labels(contest.folder / "hidden" / "solution_wkt.csv")
    assert {name for name, _ in hidden} == {"6070_0_4"}
    assert not hidden["6070_0_4", 7].is_empty
    assert "6070_0_4" not in (contest.folder / "train_wkt_v4.csv").read_text()


def test_the_reader_of_the_original_finds_no_fault_with_it(contest):
    report = check_folder(ContestFolder.open(contest.folder))
    assert not report.faults
    assert report.complete == len(NAMES)
    assert (report.repaired, report.sample_rows) == (1, 4290)
    assert report.twins == (("6110_1_2", "6140_1_2"),)


def test_twins_show_the_same_ground_in_another_light(contest):
    found = labels(contest.folder / "train_wkt_v4.csv")
    whole = np.prod([abs(float(value)) for value in table(contest.folder / "grid_sizes.csv")[1][1:]])
    for number in range(1, 9):
        first, second = found["6110_1_2", number], found["6140_1_2", number]
        assert abs(first.area - second.area) < 0.02 * whole
        if first.area > 0.02 * whole:
            assert first.intersection(second).area > 0.7 * first.union(second).area
            assert not first.equals(second)
    looks = [look_of(region, 4) for region in (6110, 6140)]
    assert looks[0].season != looks[1].season
    assert looks[0].light.azimuth != looks[1].light.azimuth
    assert country_of(6110, 4) == country_of(6140, 4)
    assert country_of(6110, 4) != country_of(6120, 4)


def test_a_tile_is_the_same_alone_and_among_others(contest):
    alone = make_tile("6140_1_2", seed=4, size=SIZE)
    with rasterio.open(contest.folder / "sixteen_band/6140_1_2_M.tif") as image:
        assert np.array_equal(image.read(), alone.images.multi)
    assert alone.labels.shares == contest.labelled["6140_1_2"]
    other = make_tile("6140_1_2", seed=5, size=SIZE)
    assert not np.array_equal(other.images.multi[0, :30, :30], alone.images.multi[0, :30, :30])


def test_labels_lie_on_the_rgb_image():
    made = make_tile("6070_2_3", seed=1, size=(200, 230))
    high, wide = made.images.rgb.shape[1:]
    step_x, step_y = sizes_of(made.tile, 1, (200, 230)).frame.steps("label")
    water = made.labels.classes[6]
    dark = -made.images.rgb[0].astype(float)
    fits = {}
    for row in range(-3, 4):
        for col in range(-3, 4):
            place = Affine(step_x, 0, col * step_x, 0, step_y, row * step_y)
            mask = rasterize([(water, 1)], out_shape=(high, wide), transform=place, dtype="uint8")
            fits[row, col] = np.corrcoef(mask[5:-5, 5:-5].ravel(), dark[5:-5, 5:-5].ravel())[0, 1]
    best = max(fits, key=lambda shift: fits[shift])
    assert max(map(abs, best)) <= 1


def test_a_plan_covers_what_the_recipe_asks():
    recipe = Recipe((0.08, 0.01, 0.03, 0.05, 0.12, 0.35, 0.04, 0.008, 0.001, 0.001), 60.0, 12.0, 90.0)
    ground: Ground = plan_ground(
        np.random.default_rng(3), recipe, Rarities(1, 1, 2), country_of(6100, 3), width_m=110.0, height_m=96.0
    )
    ground = add_traffic(np.random.default_rng(4), ground, Rarities(1, 1, 2))
    tile = ground.site.tile
    for number, share in enumerate(recipe.shares[:7], start=1):
        parts = [thing.outline for thing in ground.things if GEOJSON_CLASSES[thing.name] == number]
        parts += [crown.outline for name, crown in ground.groves if GEOJSON_CLASSES[name] == number]
        area = shapely.union_all(parts).intersection(tile).area
        assert area == pytest.approx(share * tile.area, rel=0.3), class_names()[number]
    assert sum(GEOJSON_CLASSES[thing.name] == 9 for thing in ground.things) == 1
    assert sum(GEOJSON_CLASSES[thing.name] == 10 for thing in ground.things) == 2


def test_a_spoilt_shape_is_invalid_and_a_triangle_cannot_be_spoilt():
    square = shapely.MultiPolygon([shapely.box(0, 0, 4, 3)])
    assert not spoilt(square).is_valid
    with pytest.raises(UsageError, match="invalid"):
        spoilt(shapely.MultiPolygon([shapely.Polygon([(0, 0), (1, 0), (0, 1)])]))


def test_what_cannot_be_made_is_refused_before_work(tmp_path):
    with pytest.raises(UsageError, match="6200_0_0"):
        generate_contest(tmp_path / "new", tiles=["6200_0_0"])
    with pytest.raises(UsageError, match="decoys"):
        generate_contest(tmp_path / "new", decoys=394)
    with pytest.raises(UsageError, match="negative"):
        make_tile("6010_1_2", seed=-1)
    with pytest.raises(UsageError, match="too small"):
        make_tile("6010_1_2", size=(20, 400))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        generate_contest(tmp_path / "full", tiles=["6010_1_2"])
    assert not (tmp_path / "new").exists()


def test_a_contest_replaces_another_whole_and_nothing_else(contest, tmp_path):
    place = tmp_path / "made"
    generate_contest(place, seed=4, size=SIZE, tiles=["6010_4_4"])
    with pytest.raises(OutputError, match="--overwrite"):
        generate_contest(place, seed=5, size=SIZE, tiles=["6010_3_4"])
    generate_contest(place, seed=5, size=SIZE, tiles=["6010_3_4"], overwrite=True)
    assert [path.name for path in (place / "three_band").iterdir()] == ["6010_3_4.tif"]
    (place / "README.txt").write_text("mine")
    with pytest.raises(OutputError, match="did not make it so"):
        generate_contest(place, seed=5, size=SIZE, tiles=["6010_3_4"], overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_contest_that_is_interrupted_leaves_nothing_and_what_was_there(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    place = tmp_path / "made"
    place.mkdir()
    for there in ([], ["README.txt"]):
        for name in there:
            (place / name).write_text("A contest generated by satseg, once")
        with pytest.raises(KeyboardInterrupt):
            generate_contest(place, tiles=["6010_4_4"], size=SIZE, overwrite=True, progress=stop)
        assert [path.name for path in tmp_path.iterdir()] == ["made"]
        assert [path.name for path in place.iterdir()] == there


def test_the_command_prints_the_areas(run, tmp_path):
    done = run("dstl", "generate", "-o", tmp_path / "dstl", "--tiles", "6010_4_4", "--seed", 2).done()
    assert "Vehicle Small" in done.out
    assert (tmp_path / "dstl" / "three_band" / "6010_4_4.tif").is_file()
