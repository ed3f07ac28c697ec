"""RowReader: the pixels of SceneReader whatever is asked for, every block once, bounded memory, no hanging threads."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from rasterio.windows import Window

from satseg.errors import GridError, InputError, UsageError
from satseg.grid import Grid
from satseg.imagery import reading, rows
from satseg.imagery.reader import SceneReader
from satseg.imagery.rows import RowReader, StripView
from satseg.imagery.scene import Scene, open_scene
from tests.factories import ORIGIN, noise, north_up, rotated, write_tiff

KINDS = (
    "tiled pixel", "tiled band", "striped", "one block", "one row", "one column", "offset", "several", "coarser",
    "finer", "turned", "degrees", "no place", "alpha", "mask", "scaled", "png", "some bands", "mixed dtypes",
)  # fmt: skip


def tiles(height: int, width: int, interleave: str = "pixel") -> dict[str, object]:
    return {
        "tiled": True, "blockysize": height, "blockxsize": width, "compress": "deflate", "interleave": interleave,
    }  # fmt: skip


def holed(count: int, height: int, width: int, *, seed: int = 0, dtype: str = "uint16") -> np.ndarray:
    """Noise with holes of 0: a patch, a column, and rows without one valid pixel."""
    data = noise(count, height, width, seed=seed, dtype=dtype)
    data[:, height // 3 : height // 3 + 20, width // 4 : width // 2] = 0
    data[:, :, width - 1] = 0
    data[:, height // 2 : height // 2 + 20] = 0
    return data


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> dict[str, Scene]:
    """A scene of every kind, none square, with more blocks than one wherever there can be."""
    folder = tmp_path_factory.mktemp("rows")

    def write(name: str, data: np.ndarray, **options: object) -> Path:
        return write_tiff(folder / f"{name}.tif", data, **options)

    pixel = write("pixel", holed(3, 75, 93), nodata=0, **tiles(16, 32))
    band = write("band", holed(2, 75, 93, seed=1), nodata=0, **tiles(32, 16, "band"))
    striped = write("striped", noise(2, 61, 40), blockysize=1)
    block = write("block", noise(1, 61, 40), blockysize=61, compress="deflate")
    coarse = write("coarse", noise(1, 20, 25), transform=north_up(40.0, x=ORIGIN[0] - 33), **tiles(16, 16))
    shifted = write(
        "shifted", noise(1, 75, 93), transform=north_up(x=ORIGIN[0] + 70, y=ORIGIN[1] - 50), **tiles(16, 16)
    )
    turned = write("turned", noise(1, 50, 60), transform=rotated(25, 9.0), **tiles(16, 16))
    alpha = write("alpha", np.concatenate([noise(2, 50, 40), holed(1, 50, 40)]), **tiles(16, 16),
                  colours=("gray", "undefined", "alpha"))  # fmt: skip
    mask = write("mask", noise(2, 50, 40), mask=holed(1, 50, 40)[0] > 0, **tiles(16, 16))
    scaled = write("scaled", holed(2, 50, 40), nodata=0, scale=(0.5, 3.0), **tiles(16, 16))
    png = write("png", noise(3, 50, 40, dtype="uint8"), transform=Affine.identity(), crs=None, driver="PNG")
    bytes_ = write("bytes", noise(1, 75, 93, dtype="uint8"), **tiles(16, 16))
    base = open_scene(pixel)
    window = Window(-7, -5, 80, 100)
    return {
        "tiled pixel": base,
        "tiled band": open_scene(band),
        "striped": open_scene(striped),
        "one block": open_scene(block),
        "one row": open_scene(write("row", noise(2, 1, 70), **tiles(16, 16))),
        "one column": open_scene(write("column", noise(2, 70, 1), **tiles(16, 16))),
        "offset": base.on_grid(base.grid.crop(window)),
        "several": open_scene([pixel, band, shifted, coarse]),
        "coarser": base.at_gsd(17.0),
        "finer": open_scene(coarse).at_gsd(13.0),
        "turned": open_scene([turned, pixel]),
        "degrees": base.on_grid(Grid(60, 70, Affine(1.3e-4, 0, 14.9995, 0, -1e-4, 45.1545), "EPSG:4326")),
        "no place": open_scene(write("bare", noise(2, 40, 70), transform=Affine.identity(), crs=None)),
        "alpha": open_scene(alpha),
        "mask": open_scene(mask),
        "scaled": open_scene(scaled),
        "png": open_scene(png),
        "some bands": base.select(base.bands[::-2]),
        "mixed dtypes": open_scene([pixel, bytes_]),
    }


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Strips and chunks so small that little files have many."""
    monkeypatch.setattr(rows, "STRIP_ROWS", 16)
    monkeypatch.setattr(rows, "CHUNK_COLS", 32)


def reader_of(scene: Scene, **options) -> RowReader:
    whole = {"cols": range(scene.grid.width), "rows": range(scene.grid.height)}
    return RowReader(scene, **(whole | options))


def wanted(reader: SceneReader, window: Window, down: range, along: range) -> tuple[np.ndarray, np.ndarray]:
    """`window` as SceneReader has it, without the pixels outside of the rows and columns asked for."""
    raster = reader.read(window)
    at_rows = np.arange(window.row_off, window.row_off + window.height)
    at_cols = np.arange(window.col_off, window.col_off + window.width)
    inside = np.outer(np.isin(at_rows, down), np.isin(at_cols, along))
    valid = raster.valid & inside
    return np.where(valid, raster.data, 0), valid


def assembled(view: StripView, scene: Scene, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """The window put together in memory that held something else."""
    shape = (round(window.height), round(window.width))
    data = np.full((len(scene.bands), *shape), 77, scene.dtype)
    valid = np.full(shape, True) if window.height % 2 else np.full(shape, False)
    complete = view.copy_into(data, valid, window)
    assert complete == valid.all()
    assert view.any_valid(window) == valid.any()
    parts = np.zeros(shape, int)
    for own, known, at_rows, at_cols in view.parts(window):
        parts[at_rows, at_cols] += 1
        np.testing.assert_array_equal(own, data[:, at_rows, at_cols])
        np.testing.assert_array_equal(known, valid[at_rows, at_cols])
    assert parts.max() <= 1
    assert not valid[parts == 0].any()
    return data, valid


@st.composite
def scans(draw) -> dict:
    """How to go over a scene: parts of it in thousandths, and sizes in pixels."""
    spans = [sorted(draw(st.tuples(st.integers(0, 1000), st.integers(0, 1000)))) for _ in range(2)]
    return {
        "kind": draw(st.sampled_from(KINDS)),
        "spans": spans,
        "band": draw(st.integers(5, 80)),
        "width": draw(st.integers(10, 60)),
        "halo": draw(st.integers(0, 24)),
        "threads": draw(st.integers(1, 3)),
        "ahead": draw(st.integers(0, 3)),
        "limit": draw(st.sampled_from([8, 16, 1024])),
    }


def part_of(size: int, thousandths: list[int]) -> range:
    start = min(thousandths[0] * size // 1000, size - 1)
    return range(start, max(start + 1, thousandths[1] * size // 1000))


@settings(max_examples=50, deadline=None)
@given(scan=scans())
@pytest.mark.timeout(120)
def test_windows_equal_those_of_the_scene(scenes, scan):
    scene = scenes[scan["kind"]]
    down, along = part_of(scene.grid.height, scan["spans"][0]), part_of(scene.grid.width, scan["spans"][1])
    band, width, halo = scan["band"], scan["width"], scan["halo"]
    options = {"threads": scan["threads"], "ahead": scan["ahead"], "align_limit": scan["limit"]}
    with scene.reader() as plain, RowReader(scene, cols=along, rows=down, **options) as reader:
        for top in range(down.start, down.stop, band):
            view = reader.window(top - halo, top + band + halo)
            for left in range(along.start, along.stop, width):
                window = Window(left - halo, top - halo, width + 2 * halo, band + 2 * halo)
                data, valid = assembled(view, scene, window)
                right_data, right_valid = wanted(plain, window, down, along)
                np.testing.assert_array_equal(valid, right_valid)
                np.testing.assert_array_equal(data, right_data)


@pytest.mark.parametrize("kind", KINDS)
def test_strips_partition_the_rows_and_tell_what_is_empty(scenes, kind):
    scene = scenes[kind]
    whole = scene.read()
    with reader_of(scene) as reader:
        view = reader.window(-3, scene.grid.height + 3)
    assert [strip.row for strip in view.strips] == list(reader._edges[:-1])
    np.testing.assert_array_equal(np.concatenate([strip.data for strip in view.strips], axis=1), whole.data)
    for strip in view.strips:
        height = strip.data.shape[1]
        valid = whole.valid[strip.row : strip.row + height]
        assert strip.data.dtype == scene.dtype
        assert height <= reader.strip_rows
        assert not strip.data.flags.writeable
        assert strip.empty == (not valid.any())
        assert (strip.valid is None) == bool(valid.all())
        if strip.valid is not None:
            np.testing.assert_array_equal(strip.valid, valid)
            assert not strip.valid.flags.writeable


def test_an_empty_strip_takes_no_memory(scenes, tmp_path):
    scene = open_scene(write_tiff(tmp_path / "a.tif", holed(2, 64, 40) * 0, nodata=0, **tiles(16, 16)))
    with reader_of(scene) as reader:
        strips = reader.window(0, 64).strips
    assert len(strips) == 4
    assert all(strip.empty and strip.data.strides == (0, 0, 0) and strip.valid.strides == (0, 0) for strip in strips)


class TestBlocks:
    """Every block is decoded once."""

    @pytest.fixture
    def windows(self, monkeypatch) -> list[tuple[str, Window]]:
        """What is read of which file, in pixels of the file."""
        read, real = [], reading.read_native

        def noting(dataset, file, *args, window, **options):
            read.append((file.path, window))
            return real(dataset, file, *args, window=window, **options)

        monkeypatch.setattr(reading, "read_native", noting)
        return read

    @pytest.mark.parametrize(("band", "halo"), [(5, 0), (16, 16), (37, 21), (200, 3)])
    @pytest.mark.parametrize("kind", ["tiled pixel", "tiled band", "offset", "striped", "one row", "one column"])
    def test_reads_partition_the_blocks(self, scenes, windows, kind, band, halo):
        scene = scenes[kind]
        with reader_of(scene, threads=2) as reader:
            for top in range(0, scene.grid.height, band):
                reader.window(top - halo, top + band + halo)
        file = scene.sources[0].file
        seen = np.zeros(file.grid.shape, int)
        for _, window in windows:
            seen[window.toslices()] += 1
        assert seen.max() == 1
        assert len(windows) > 1 or kind == "one row"
        if kind == "offset":  # its grid ends inside blocks
            return
        assert seen.all()
        for _, window in windows:
            for span, size, block in zip(window.toranges(), file.grid.shape, file.blocks, strict=True):
                assert span[0] % block == 0
                assert span[1] % block == 0 or span[1] == size

    def test_strips_end_where_the_blocks_of_a_file_off_the_grid_end(self, scenes):
        scene = scenes["offset"]  # rows -5 to 95 of a file of 16-row blocks, columns -7 to 73 of 32-column ones
        with reader_of(scene) as reader:
            inner = [strip.row for strip in reader.window(0, 100).strips][1:]
        assert [(row - 5) % 16 for row in inner] == [0] * 6
        assert reader._chunks == (0, 7, 39, 71, 80)

    def test_the_coarsest_blocks_lead_where_others_fit_into_them(self, scenes):
        """Blocks of 16 x 32, of 32 x 16, and of 16 x 16 five rows further down."""
        with reader_of(scenes["several"]) as reader:
            assert reader._edges == (0, 32, 64, 75)
            assert reader._chunks == (0, 32, 64, 93)

    def test_blocks_too_tall_to_hold_are_cut_and_none_is_in_two_strips_by_halves(self, scenes, tmp_path):
        with reader_of(scenes["one block"], align_limit=60) as reader:
            assert reader._edges == (0, 16, 32, 48, 61)
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 90, 20), **tiles(48, 16)))
        with reader_of(scene, align_limit=40, rows=range(10, 90)) as reader:
            assert reader._edges == (10, 16, 32, 48, 64, 80, 90)
        with reader_of(scene, align_limit=48) as reader:
            assert reader._edges == (0, 48, 90)

    def test_small_blocks_are_grouped_alike_whatever_rows_are_read(self, scenes):
        with reader_of(scenes["striped"]) as whole, reader_of(scenes["striped"], rows=range(21, 50)) as part:
            assert whole._edges == (0, 16, 32, 48, 61)
            assert part._edges == (21, 32, 48, 50)

    @pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="bytes read are counted by Linux only")
    @pytest.mark.parametrize("interleave", ["pixel", "band"])
    @pytest.mark.parametrize("layout", ["tiled", "striped"])
    @pytest.mark.parametrize("bands", [None, ("b2",)])
    def test_a_cache_smaller_than_a_row_of_blocks_does(self, tmp_path, monkeypatch, interleave, layout, bands):
        """GDAL reads a block's bytes whenever it decodes it: they are read once, and several times by windows."""
        monkeypatch.setattr(rows, "STRIP_ROWS", 256)
        monkeypatch.setattr(rows, "CHUNK_COLS", 2048)
        how = tiles(128, 128, interleave) if layout == "tiled" else {"blockysize": 4, "interleave": interleave}
        path = write_tiff(tmp_path / "a.tif", noise(3, 300, 4000), **how)
        scene = open_scene(path) if bands is None else open_scene(path).select(bands)
        share = 1 / 3 if bands and interleave == "band" else 1.0
        bands_of_rows = [Window(0, top - 30, 4000, 130) for top in range(0, 300, 70)]
        with rasterio.Env(GDAL_CACHEMAX=1_000_000):
            start = bytes_read()
            with reader_of(scene, threads=2) as reader:
                for window in bands_of_rows:
                    reader.window(window.row_off, window.row_off + window.height)
            ours = bytes_read() - start
            with scene.reader() as plain:
                for window in bands_of_rows:
                    plain.read(window)
            theirs = bytes_read() - start - ours
        assert 0.9 * share < ours / path.stat().st_size < 1.1 * share
        assert theirs > 1.5 * ours or layout == "striped"  # its blocks are small


def bytes_read() -> int:
    """Bytes that this process has read by system calls, from disk or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


class TestArea:
    """Ground outside of the area of interest is neither valid nor read."""

    def area(self, scene: Scene, rows_: tuple[int, int], cols: tuple[int, int]) -> np.ndarray:
        """A triangle and a far away square, as polygon and multipolygon."""
        at = np.array([(rows_[0], cols[0]), (rows_[1], cols[0]), (rows_[1], cols[1])], float)
        xs, ys = scene.grid.xy(rows=at[:, 0], cols=at[:, 1])
        far = shapely.box(xs[0] + 1e6, ys[0], xs[0] + 1e6 + 100, ys[0] + 100)
        return np.array([shapely.Polygon(np.column_stack([xs, ys])), shapely.MultiPolygon([far])], dtype=object)

    @pytest.mark.parametrize("kind", ["tiled pixel", "turned", "several", "no place", "striped"])
    def test_pixels_are_valid_where_their_centre_lies_inside(self, scenes, kind):
        scene = scenes[kind]
        area = self.area(scene, (11, 38), (5, 33))
        inside = rasterize(area, scene.grid.shape, transform=scene.grid.transform).astype(bool)
        whole = scene.read()
        with reader_of(scene, aoi=area, threads=2) as reader:
            view = reader.window(0, scene.grid.height)
        data, valid = assembled(view, scene, scene.grid.window)
        np.testing.assert_array_equal(valid, whole.valid & inside)
        np.testing.assert_array_equal(data, np.where(whole.valid & inside, whole.data, 0))
        assert valid.any()
        assert view.strips[-1].empty or scene.grid.height <= 40

    def test_burning_leaves_the_warning_filters_as_they_were(self, scenes):
        scene, before = scenes["no place"], list(warnings.filters)
        for _ in range(20):
            with reader_of(scene, aoi=self.area(scene, (5, 38), (5, 60)), threads=3, ahead=3) as reader:
                reader.window(0, 5)
        assert warnings.filters == before

    def test_chunks_without_a_pixel_inside_are_not_read(self, scenes, monkeypatch):
        read, real = [], SceneReader.read_into
        monkeypatch.setattr(
            SceneReader, "read_into", lambda self, out, window: read.append(window) or real(self, out, window)
        )
        scene = scenes["tiled pixel"]
        with reader_of(scene, aoi=self.area(scene, (66, 74), (66, 80))) as reader:
            strips = reader.window(0, 75).strips
        assert [(window.row_off, window.col_off) for window in read] == [(64, 64)]
        assert [strip.empty for strip in strips] == [True, True, True, True, False]

    @pytest.mark.parametrize("area", [[], [shapely.LineString([(0, 0), (1e7, 1e7)])], [shapely.Polygon()], [None]])
    def test_an_area_without_ground_leaves_nothing_valid(self, scenes, area):
        with reader_of(scenes["tiled pixel"], aoi=np.array(area, dtype=object)) as reader:
            assert all(strip.empty for strip in reader.window(0, 75).strips)

    def test_an_area_around_all_changes_nothing(self, scenes):
        scene = scenes["striped"]
        area = np.array([shapely.box(*scene.grid.bounds).buffer(50)], dtype=object)
        with reader_of(scene, aoi=area) as reader:
            assert all(strip.valid is None for strip in reader.window(0, 61).strips)


class TestMemory:
    """What is held is the view and what is read ahead."""

    def alive(self, scene: Scene, monkeypatch) -> list[weakref.ref]:
        """References to the memory of every strip made from now on."""
        made: list[weakref.ref] = []
        real = rows.np.empty

        def noting(shape, dtype):
            array = real(shape, dtype)
            made.append(weakref.ref(array))
            return array

        monkeypatch.setattr(rows, "np", type("numpy", (), {**vars(np), "empty": staticmethod(noting)}))
        return made

    @pytest.mark.parametrize(("ahead", "max_bytes"), [(0, None), (1, None), (3, None), (3, 0), (3, 20 * 16 * 2 * 2)])
    def test_strips_beyond_the_view_are_bounded(self, tmp_path, monkeypatch, ahead, max_bytes):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(2, 16 * 30, 20), **tiles(16, 16)))
        made = self.alive(scene, monkeypatch)
        bound = ahead if max_bytes is None else max_bytes // (20 * 16 * 2 * 2)
        with reader_of(scene, threads=2, ahead=ahead, max_bytes=max_bytes) as reader:
            for top in range(0, 16 * 30, 24):
                view = reader.window(top - 8, top + 32)
                held = [ref for ref in made if ref() is not None]
                left = (scene.grid.height - view.strips[-1].row) // 16 - 1
                assert len(held) <= len(view.strips) + bound
                assert len(reader._pending) == min(bound, left)
        assert len(made) == 30
        del view
        assert not any(ref() is not None for ref in made)

    def test_neighbouring_views_share_their_strips(self, scenes):
        with reader_of(scenes["tiled pixel"]) as reader:
            first, second = reader.window(0, 40), reader.window(20, 75)
        assert second.strips[:2] == first.strips[1:]
        assert all(a is b for a, b in zip(first.strips[1:], second.strips, strict=False))

    def test_a_view_stays_true_while_later_ones_are_read(self, scenes):
        scene = scenes["tiled pixel"]
        window = Window(0, 0, 93, 16)
        with reader_of(scene) as reader:
            view = reader.window(0, 16)
            reader.window(60, 75)
        np.testing.assert_array_equal(assembled(view, scene, window)[0], scene.read(window=window).data)

    def test_rows_that_are_skipped_are_not_read(self, scenes, monkeypatch):
        read, real = [], SceneReader.read_into
        monkeypatch.setattr(
            SceneReader, "read_into", lambda self, out, window: read.append(window.row_off) or real(self, out, window)
        )
        with reader_of(scenes["tiled pixel"], ahead=0) as reader:
            reader.window(0, 10)
            reader.window(64, 75)
        assert set(read) == {0, 64}


class TestEnds:
    """Errors come out, and nothing waits for ever."""

    @pytest.fixture(autouse=True)
    def no_thread_is_left(self):
        before = threading.active_count()
        yield
        assert threading.active_count() == before

    @pytest.fixture
    def damaged(self, tmp_path) -> Scene:
        """A file whose lower blocks are missing."""
        path = write_tiff(tmp_path / "a.tif", noise(1, 64, 64), tiled=True, blockxsize=16, blockysize=16)
        path.write_bytes(path.read_bytes()[: 16 * 16 * 2 * 12])
        return open_scene(path)

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("threads", [1, 3])
    def test_damaged_blocks_raise_when_their_rows_are_asked_for(self, damaged, threads):
        with reader_of(damaged, threads=threads, ahead=4) as reader:
            reader.window(0, 32)
            for _ in range(2):  # not only the first time
                with pytest.raises(InputError, match=r"rows \d+ to \d+, columns") as caught:
                    reader.window(20, 64)
                assert caught.value.code == "E-IN-106"

    @pytest.mark.timeout(20)
    def test_damaged_blocks_outside_of_what_is_asked_for_do_no_harm(self, damaged):
        with reader_of(damaged, rows=range(0, 32)) as reader:
            assert reader.window(0, 64).strips[-1].row == 16

    @pytest.mark.timeout(20)
    def test_a_file_gone_since_it_was_opened(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", noise(1, 9, 9))
        scene = open_scene(path)
        path.unlink()
        with reader_of(scene) as reader, pytest.raises(InputError) as caught:
            reader.window(0, 9)
        assert caught.value.code == "E-IN-105"

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("threads", [1, 2])
    def test_leaving_early_reads_nothing_more(self, scenes, monkeypatch, threads):
        read, real = [], SceneReader.read_into

        def slow(self, out, window):
            read.append(window)
            time.sleep(0.02)
            return real(self, out, window)

        monkeypatch.setattr(SceneReader, "read_into", slow)
        start = time.monotonic()
        with reader_of(scenes["tiled pixel"], threads=threads, ahead=4) as reader:
            reader.window(0, 10)
        assert time.monotonic() - start < 5
        assert len(read) <= 3 + 2 * threads

    @pytest.mark.timeout(20)
    def test_leaving_closes_the_files(self, scenes):
        with reader_of(scenes["tiled pixel"], threads=2) as reader:
            reader.window(0, 75)
            handles = list(reader._reader._handles.values())
            files = [dataset for own in handles for dataset in own.values()]
        assert files
        assert all(dataset.closed for dataset in files)

    def test_a_reader_that_read_nothing_ends(self, scenes):
        with reader_of(scenes["tiled pixel"]):
            pass

    @pytest.mark.parametrize("rows_", [(-30, 0), (75, 90), (40, 40), (200, 300)])
    def test_rows_outside_have_no_strips_and_windows_there_are_not_valid(self, scenes, rows_):
        scene = scenes["tiled pixel"]
        with reader_of(scene) as reader:
            view = reader.window(*rows_)
        assert view.strips == ()
        outside = Window(3, -50, 8, 9)
        assert not assembled(view, scene, outside)[1].any()

    def test_rows_the_view_does_not_hold_are_refused(self, scenes):
        with reader_of(scenes["tiled pixel"]) as reader:
            view = reader.window(20, 40)
        for window in (Window(0, 15, 5, 5), Window(0, 40, 5, 9), Window(0, 60, 5, 5)):
            with pytest.raises(GridError) as caught:
                view.any_valid(window)
            assert caught.value.code == "E-GRID-121"

    def test_going_back_is_refused(self, scenes):
        with reader_of(scenes["tiled pixel"]) as reader:
            reader.window(20, 40)
            reader.window(20, 30)
            with pytest.raises(UsageError, match="19") as caught:
                reader.window(19, 40)
        assert caught.value.code == "E-USE-242"

    @pytest.mark.parametrize("odd", [{"threads": 0}, {"ahead": -1}, {"align_limit": 0}, {"rows": range(0, 9, 2)}])
    def test_numbers_that_make_no_sense_are_refused(self, scenes, odd):
        with pytest.raises(UsageError):
            reader_of(scenes["tiled pixel"], **odd)

    @pytest.mark.parametrize("odd", [{"rows": range(75, 80)}, {"cols": range(-9, 0)}, {"cols": range(5, 5)}])
    def test_rows_and_columns_off_the_grid_are_refused(self, scenes, odd):
        with pytest.raises(GridError) as caught:
            reader_of(scenes["tiled pixel"], **odd)
        assert caught.value.code == "E-GRID-122"


@pytest.mark.parametrize(("kind", "count"), [("tiled pixel", 3), ("png", 1), ("several", 3)])
def test_threads_do_not_share_what_is_decoded_from_the_top(scenes, kind, count):
    with reader_of(scenes[kind], threads=3) as reader:
        assert sum(pool._max_workers for pool in reader._pools) == count
        if kind == "several":  # resampled: a column of chunks belongs to one thread
            assert [pool._max_workers for pool in reader._pools] == [1, 1, 1]
        reader.window(0, scenes[kind].grid.height)


def test_many_readers_at_once_read_the_right_pixels(scenes):
    scene = scenes["several"]
    whole = scene.read()
    wrong: list[int] = []

    def scan(band: int) -> None:
        with reader_of(scene, threads=2) as reader:
            for top in range(0, scene.grid.height, band):
                window = Window(0, top, scene.grid.width, band)
                out = np.empty((len(scene.bands), band, scene.grid.width), scene.dtype)
                reader.window(top, top + band).copy_into(out, np.empty(out.shape[1:], bool), window)
                right = whole.data[:, top : top + band]
                if not np.array_equal(out[:, : right.shape[1]], right):
                    wrong.append(top)

    threads = [threading.Thread(target=scan, args=(band,)) for band in (7, 16, 33)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_tiles_of_another_dtype_are_cast(scenes):
    scene = scenes["tiled pixel"]
    out, valid = np.full((3, 10, 20), np.nan, np.float32), np.zeros((10, 20), bool)
    with reader_of(scene) as reader:
        reader.window(0, 20).copy_into(out, valid, Window(80, 5, 20, 10))
    data, right = wanted(scene.reader(), Window(80, 5, 20, 10), range(75), range(93))
    np.testing.assert_array_equal(out, data.astype(np.float32))
    np.testing.assert_array_equal(valid, right)
