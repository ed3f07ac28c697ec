"""One reader in many threads and processes: right pixels always, files held open, none shared."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from satseg.imagery.scene import SceneReader, open_scene
from tests.factories import noise, north_up, write_tiff

WINDOWS = [Window(int(c), int(r), 40, 30) for r, c in np.random.default_rng(0).integers(-10, 180, (200, 2))]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list:
    """A stack and a coarser band of the same ground."""
    folder = tmp_path_factory.mktemp("threads")
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    return [
        write_tiff(folder / "a.tif", noise(3, 200, 210), **tiles),
        write_tiff(folder / "b.tif", noise(1, 70, 75), transform=north_up(30.0), **tiles),
    ]


def digest(reader: SceneReader, window: Window) -> tuple[float, int]:
    """A number that other pixels would change, and how many are valid."""
    raster = reader.read(window)
    weights = np.arange(raster.data.size).reshape(raster.data.shape) % 977
    return float((raster.data.astype(np.float64) * weights).sum()), int(raster.valid.sum())


def work(reader: SceneReader, start: int, results) -> None:
    """Read in another process."""
    results.put((os.getpid(), [digest(reader, window) for window in WINDOWS[start : start + 10]]))


def test_eight_threads_read_the_right_pixels(paths):
    with open_scene(paths).reader() as reader:
        wanted = [digest(reader, window) for window in WINDOWS]
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda window: digest(reader, window), WINDOWS * 3))
    assert got == wanted * 3


def test_scenes_open_in_many_threads(paths, tmp_path):
    bare = write_tiff(tmp_path / "bare.tif", noise(1, 20, 20), transform=rasterio.Affine.identity(), crs=None)
    with ThreadPoolExecutor(8) as pool:
        shapes = list(pool.map(lambda path: open_scene(path).read().shape, [bare, *paths] * 10))
    assert shapes == [(1, 20, 20), (3, 200, 210), (1, 70, 75)] * 10


@pytest.mark.parametrize(("method", "count"), [("fork", 2), ("spawn", 1)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_processes_read_with_a_reader_in_use(paths, method, count, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    context = multiprocessing.get_context(method)
    with open_scene(paths).reader() as reader:
        wanted = [digest(reader, window) for window in WINDOWS[: 10 * count]]
        results = context.Queue()
        workers = [context.Process(target=work, args=(reader, 10 * n, results)) for n in range(count)]
        for worker in workers:
            worker.start()
        answers = dict(results.get(timeout=60) for _ in workers)
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        got = [answer for own in answers.values() for answer in own]
        assert sorted(got) == sorted(wanted)
        assert [digest(reader, window) for window in WINDOWS[: 10 * count]] == wanted


def test_files_stay_open_and_each_thread_has_its_own(paths, monkeypatch):
    opened = []
    real = rasterio.open

    def counting(path, *args, **options):
        opened.append((threading.get_ident(), os.fspath(path)))
        return real(path, *args, **options)

    scene = open_scene(paths)
    monkeypatch.setattr(rasterio, "open", counting)
    with scene.reader() as reader:
        for window in WINDOWS[:5]:
            reader.read(window)
        other = threading.Thread(target=reader.read, args=(WINDOWS[0],))
        other.start()
        other.join()
    assert len(opened) == len(set(opened)) == 4


def test_a_closed_reader_opens_again(paths):
    reader = open_scene(paths).reader()
    first = reader.read(WINDOWS[0])
    reader.close()
    np.testing.assert_array_equal(reader.read(WINDOWS[0]).data, first.data)
    reader.close()


def test_closing_closes_the_files_of_all_threads(paths):
    reader = open_scene(paths).reader()
    datasets = []
    reader._opener = lambda file, real=reader._opener: datasets.append(real(file)) or datasets[-1]
    reader.read(WINDOWS[0])
    other = threading.Thread(target=reader.read, args=(WINDOWS[0],))
    other.start()
    other.join()
    assert not any(dataset.closed for dataset in datasets)
    reader.close()
    assert len(datasets) >= 2
    assert all(dataset.closed for dataset in datasets)


def test_a_reader_can_be_pickled(paths):
    with open_scene(paths).reader() as reader:
        wanted = digest(reader, WINDOWS[3])
        with pickle.loads(pickle.dumps(reader)) as copy:
            assert digest(copy, WINDOWS[3]) == wanted
