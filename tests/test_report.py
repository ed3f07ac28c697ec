"""Report: JSON, tables, the page and its pictures."""

from __future__ import annotations

import json
import pickle
import warnings
from html.parser import HTMLParser

import geopandas
import numpy as np
import pytest
import shapely
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from satseg.errors import OutputError, UsageError
from satseg.grid import Grid
from satseg.imagery.scene import open_scene
from satseg.raster import Raster
from satseg.scoring.overlay import (
    BACKGROUND,
    ERROR_ALPHA,
    FALSE_ALARM,
    HIT,
    MISS,
    WRONG_CLASS,
    Drawing,
    error_masks,
    overlay_png,
    paint,
)  # fmt: skip
from satseg.scoring.report import ClassScore, Report, SceneScore
from satseg.scoring.score import score
from tests.factories import UTM, noise, north_up, write_tiff

HOSTILE = "<script>alert('x')</script>\"&{{$score}}"


def boxes(*rows, crs=UTM):
    """Rows of (class, column, row, width, height) on pixels of 1 m, rows counted down from 5 000 000."""
    shapes = [shapely.box(5e5 + c, 5e6 - r - h, 5e5 + c + w, 5e6 - r) for _, c, r, w, h in rows]
    return geopandas.GeoDataFrame({"class_name": [row[0] for row in rows]}, geometry=shapes, crs=crs)


def grid(height=20, width=30):
    return Grid(height, width, north_up(1.0), UTM)


def example(name="a", **options):
    pred, truth = boxes((name, 2, 2, 10, 10), ("b", 20, 2, 5, 5)), boxes((name, 4, 2, 10, 10))
    return score(pred, truth, scene=grid(), **options)


def strict(text):
    """Parse JSON as the standard has it: no NaN, no Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def pixels_of(png):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile(png) as memory, memory.open() as picture:
            return picture.read()


def rgb(color):
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


# ---- numbers -----------------------------------------------------------------------------------------


def test_json_has_the_published_shape():
    content = strict(example().to_json())
    assert content["mean_jaccard"] == pytest.approx((80 / 120 + 0) / 2)
    assert content["mean_pixel_jaccard"] == pytest.approx((80 / 120 + 0) / 2)
    assert content["empty_rule"] == "absent"
    assert content["scenes"]["scene"]["mean_jaccard"] == content["mean_jaccard"]
    entry = content["classes"]["a"]
    assert (entry["tp_m2"], entry["fp_m2"], entry["fn_m2"]) == (80, 20, 20)
    assert (entry["truth_features"], entry["predicted_features"]) == (1, 1)
    assert (entry["jaccard"], entry["pixel_jaccard"], entry["f1_50"]) == pytest.approx((2 / 3, 2 / 3, 1))


def test_json_of_nothing_is_null_and_not_nan():
    empty = boxes()
    content = strict(score(empty, empty, classes=["a"]).to_json())
    assert content["mean_jaccard"] is None
    assert content["classes"]["a"]["jaccard"] is None
    assert content["classes"]["a"]["f1_50"] is None
    assert strict(Report({}).to_json())["classes"] == {}


def test_json_goes_to_a_file_once(tmp_path):
    path = tmp_path / "report.json"
    text = example().to_json(path)
    assert strict(path.read_text(encoding="utf-8")) == strict(text)
    with pytest.raises(OutputError):
        example().to_json(path)
    example("c").to_json(path, overwrite=True)
    assert "c" in strict(path.read_text(encoding="utf-8"))["classes"]


def test_tables_have_one_line_per_class_or_scene_and_a_mean():
    report = example()
    lines = report.table().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["a", "b", "mean,"]
    assert len({len(line) for line in lines}) == 1
    assert "0.667" in lines[2]
    assert "0.333" in lines[-1]
    scenes = report.table(by="scene").splitlines()
    assert [line.split()[0] for line in scenes[2:]] == ["scene", "all"]
    with pytest.raises(UsageError, match="tile"):
        report.table(by="tile")


def test_table_of_nothing_is_dashes():
    assert "\N{EN DASH}" in Report({"x": SceneScore("x", {"a": ClassScore()})}).table()


def test_reports_survive_pickling():
    report = example()
    assert pickle.loads(pickle.dumps(report)).to_dict() == report.to_dict()


# ---- pictures ----------------------------------------------------------------------------------------


def test_errors_are_told_apart_pixel_by_pixel():
    truth = np.array([[[1, 1, 0, 0, 1]], [[0, 0, 0, 0, 0]]], bool)
    pred = np.array([[[1, 0, 1, 0, 0]], [[0, 0, 0, 0, 1]]], bool)
    masks = error_masks(truth, pred)
    assert masks[HIT].tolist() == [[True, False, False, False, False]]
    assert masks[MISS].tolist() == [[False, True, False, False, False]]
    assert masks[FALSE_ALARM].tolist() == [[False, False, True, False, False]]
    assert masks[WRONG_CLASS].tolist() == [[False, False, False, False, True]]


def test_painted_masks_have_solid_edges_and_clear_surroundings():
    mask = np.zeros((20, 30), bool)
    mask[5:10, 5:12] = True
    picture = paint([(HIT, mask)], grid(), alpha=ERROR_ALPHA)
    assert picture.shape == (4, 20, 30)
    assert set(picture[3][~mask].tolist()) == {0}
    assert (picture[3, 5, 5], picture[3, 7, 8]) == (255, ERROR_ALPHA)
    assert picture[:3, 7, 8].tolist() == rgb(HIT)


def test_overlay_shows_hits_false_alarms_and_misses_where_they_are():
    png = overlay_png(None, boxes(("a", 4, 2, 10, 10)), boxes(("a", 2, 2, 10, 10)), grid())
    picture = pixels_of(png)
    assert picture.shape == (3, 20, 30)
    assert picture[:, 5, 3].tolist() == rgb(FALSE_ALARM)  # two pixels wide: all edge, solid
    assert picture[:, 5, 13].tolist() == rgb(MISS)
    assert picture[:, 4, 4].tolist() == rgb(HIT)
    assert picture[:, 0, 0].tolist() == list(BACKGROUND)


def test_overlay_lies_over_the_image_and_keeps_its_shape():
    image = Raster(noise(3, 20, 30), grid(), ("red", "green", "blue"))
    nothing = boxes()
    picture = pixels_of(overlay_png(image, nothing, nothing, grid(), classes=["a"]))
    assert picture.shape == (3, 20, 30)
    assert np.ptp(picture) > 50
    assert np.array_equal(picture[0], picture[1])  # the scene is grey below hits and misses


def test_large_scenes_are_drawn_small_and_in_place(tmp_path):
    large = grid(1500, 2300)
    truth = boxes(("a", 2000, 200, 200, 300))
    for image in (None, Raster(np.ones((1, 1500, 2300), np.uint8), large, ("grey",))):
        panels = Drawing(truth, truth, large, ("a",), image).panels()
        height, width = panels.errors.shape[1:]
        assert max(height, width) <= 1024
        rows, cols = np.nonzero(panels.truth[3])
        scale = 2300 / width
        assert cols.min() * scale == pytest.approx(2000, abs=2 * scale)
        assert rows.max() * scale == pytest.approx(500, abs=2 * scale)


def test_scenes_on_disk_are_read_coarse(tmp_path):
    path = write_tiff(tmp_path / "big.tif", noise(3, 600, 2100), transform=north_up(1.0))
    scene = open_scene(path)
    truth = boxes(("a", 0, 0, 500, 500))
    panels = Drawing(truth, truth, scene.grid, ("a",), scene).panels()
    assert panels.image.shape == panels.errors.shape
    assert panels.image.shape[2] == 1024


# ---- page --------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.targets, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_names_and_runs_nothing():
    pred, truth = boxes((HOSTILE, 2, 2, 10, 10)), boxes((HOSTILE, 4, 2, 10, 10))
    report = score({HOSTILE: pred}, {HOSTILE: truth}, scene=grid())
    text = report.to_html()
    page = Page(text)
    assert "script" not in page.tags
    assert HOSTILE in page.words
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert page.tags.count("img") == 3
    assert all(target.startswith("data:image/png;base64,") for target in page.targets)
    assert "http:" not in text
    assert "https:" not in text


def test_long_names_are_cut():
    assert "n" * 200 not in example("n" * 5000).to_html()


def test_the_page_is_drawn_over_the_scene(tmp_path):
    path = write_tiff(tmp_path / "town.tif", noise(3, 20, 30), transform=north_up(1.0))
    report = score(boxes(("a", 2, 2, 10, 10)), boxes(("a", 4, 2, 10, 10)), aoi=open_scene(path))
    text = report.to_html()
    assert "background-image:url(data:image/png;base64," in text
    assert "town" in Page(text).words[0] + "".join(Page(text).words)


def test_the_page_goes_to_a_file_once(tmp_path):
    path = tmp_path / "report.html"
    text = example().to_html(path)
    assert path.read_text(encoding="utf-8") == text
    with pytest.raises(OutputError):
        example().to_html(path)
    example().to_html(path, overwrite=True)


def test_the_weakest_scenes_are_drawn_and_not_all(monkeypatch):
    monkeypatch.setattr("satseg.scoring.page.MAX_PICTURES", 1)
    truth = {name: boxes(("a", 4, 2, 10, 10)) for name in ("good", "bad")}
    pred = {"good": truth["good"], "bad": boxes(("a", 9, 2, 10, 10))}
    text = score(pred, truth).to_html()
    assert text.count("<figure>") == 3
    assert "<h2>bad" in text
    assert "<h2>good" not in text


def test_notes_and_repairs_are_told():
    bow_tie = shapely.Polygon([(5e5, 5e6), (5e5 + 2, 5e6 + 2), (5e5 + 2, 5e6), (5e5, 5e6 + 2)])
    pred = geopandas.GeoDataFrame({"class_name": ["a"]}, geometry=[bow_tie], crs=UTM)
    text = score(pred, boxes(("a", 90, 90, 5, 5))).to_html()
    assert "1 invalid polygon was repaired" in text
    assert "different places" in text


def test_a_page_without_anything_still_opens():
    empty = boxes()
    assert Page(score(empty, empty).to_html()).tags.count("img") == 0


def test_notebooks_get_a_fragment_with_the_score():
    fragment = example()._repr_html_()
    assert "0.333" in fragment
    assert "<html" not in fragment
    assert Page(example(HOSTILE)._repr_html_()).tags.count("script") == 0
