"""One reader in many threads and processes: right pixels always, files held open, none shared."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

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


def read_in_processes(paths, method: str, count: int) -> tuple[list, list, list]:
    """What a reader in use reads here, what it reads in `count` processes begun by `method`, and here once more."""
    context = multiprocessing.get_context(method)
    with open_scene(paths).reader() as reader:
        before = [digest(reader, window) for window in WINDOWS[: 10 * count]]
        results = context.Queue()
        workers = [context.Process(target=work, args=(reader, 10 * n, results)) for n in range(count)]
        for worker in workers:
            worker.start()
        answers = dict(results.get(timeout=60) for _ in workers)
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        after = [digest(reader, window) for window in WINDOWS[: 10 * count]]
    return before, [answer for own in answers.values() for answer in own], after


@pytest.fixture
def found_by_spawned(monkeypatch):
    """Let processes that start anew find satseg and this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))


def assert_all_alike(before, there, after):
    assert sorted(there) == sorted(before)
    assert after == before


@pytest.mark.usefixtures("found_by_spawned")
def test_a_spawned_process_reads_with_a_reader_in_use(paths):
    assert_all_alike(*read_in_processes(paths, "spawn", 1))


@pytest.mark.usefixtures("found_by_spawned")
def test_forked_processes_read_with_a_reader_in_use(paths):
    """Forked off a process that has read scenes and nothing else.

    The process of the tests has threads of torch, OpenMP, Arrow and ONNX's runtime from tests before this one, whose
    handlers a fork runs, in the parent too. It died in this test once, under load and without a word.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert_all_alike(*pool.submit(read_in_processes, paths, "fork", 2).result(timeout=200))


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
