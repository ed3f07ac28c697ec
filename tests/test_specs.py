"""Specs as data: what ships is consistent, is found by its names, and users' documents stand beside it."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from satseg import documents, specs
from satseg.errors import BandError, SpecError
from satseg.specs import class_spec, load_document, sensor_spec

DOCUMENTS = sorted((Path(__file__).parents[1] / "data_specs").glob("*/*.toml"))
SENSORS = specs.list_sensors()
WANTED = {
    "worldview2", "worldview3", "sentinel2_l1c", "sentinel2_l2a", "landsat5_tm", "landsat7_etm",
    "landsat89_oli", "planetscope_4band", "planetscope_8band", "pleiades", "naip_rgbn", "rgb", "dstl_worldview3",
}  # fmt: skip
PLAIN = """kind = "sensor"
title = "Test camera"
source = "Made for the test"
bit_depth = 12

bands = [
  { name = "red", low_nm = 600, high_nm = 700, gsd_m = 2.0 },
  { name = "nir", low_nm = 800, high_nm = 900, gsd_m = 4.0, aliases = ["B2"] },
]

[[products]]
name = "stack"
bands = ["red", "nir"]
"""
CLASSES = """kind = "classes"
title = "Test classes"
source = "Made for the test"
classes = [ { id = 1, name = "roof", color = "#ff0000" } ]
"""


def written(folder: Path, text: str | bytes, name: str = "camera.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_all_wanted_sensors_and_class_lists_ship() -> None:
    assert set(SENSORS) == WANTED
    assert set(specs.list_classes()) == {"dstl", "dstl_2017", "dstl_2017_unbuffered", "buildings", "landcover"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_shipped_documents_validate_from_their_path_as_by_name(path: Path) -> None:
    spec = load_document(path)
    by_name = {"sensor": sensor_spec, "classes": class_spec, "indices": specs.index_spec}[spec.kind]
    assert by_name(path.stem) == spec
    assert by_name(path.stem) is by_name(path.stem.upper())  # parsed once
    assert spec.name == path.stem
    assert len(spec.source) > 20
    assert len(spec.title) > 3


@pytest.mark.parametrize("name", SENSORS)
def test_wavelengths_ascend_within_a_band_and_pixels_have_a_size(name: str) -> None:
    spec = sensor_spec(name)
    assert len(set(spec.band_names)) == len(spec.bands)
    for band in spec.bands:
        if name in {"rgb", "naip_rgbn"}:  # many cameras, no fixed wavelengths
            assert (band.low_nm, band.center_nm, band.high_nm) == (None, None, None)
        else:
            assert None not in (band.low_nm, band.center_nm, band.high_nm)
            assert 350 < band.low_nm < band.center_nm < band.high_nm < 13000
        assert (band.gsd_m or 1) > 0
        assert (band.gsd_m is None) == (name == "rgb")
        assert band.bit_depth in range(8, 17)
        assert band.scale > 0


@pytest.mark.parametrize("word", ["blue", "green", "red", "nir", "swir1", "pan", "coastal", "yellow"])
def test_a_band_name_means_about_the_same_wavelength_on_every_sensor(word: str) -> None:
    every = (band for name in SENSORS for band in sensor_spec(name).bands)
    bands = [band for band in every if band.name == word and band.low_nm]
    if word == "swir1":  # WorldView-3 numbers its eight otherwise
        bands = [band for band in bands if band.bit_depth != 14]
    assert max(band.low_nm for band in bands) < min(band.high_nm for band in bands)  # type: ignore[type-var]


@pytest.mark.parametrize("name", SENSORS)
def test_products_are_orders_of_the_sensors_own_bands(name: str) -> None:
    spec = sensor_spec(name)
    for product in spec.products:
        assert set(product.bands) <= set(spec.band_names)
    for count in range(20):
        order = spec.order_for(count)
        assert order is None or (len(order) == count and order in [item.bands for item in spec.products])
    assert spec.order_for(len(spec.products[0].bands)) == spec.products[0].bands


def test_worldview3_multispectral_runs_from_coastal_to_nir2_whatever_the_tag_says() -> None:
    spec = sensor_spec("worldview3")
    multispectral = spec.order_for(8)
    assert multispectral == ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir1", "nir2")
    assert spec.match_file("sixteen_band/6010_1_2_M.tif") == multispectral
    # DSTL's RGB is spectrally M's 5th, 3rd and 2nd band; pan and SWIR are files of their own.
    assert spec.match_file("three_band/6010_1_2.tif") == tuple(multispectral[i] for i in (4, 2, 1))
    assert spec.match_file("6170_0_4_P.tif") == ("pan",)
    assert spec.match_file("6170_0_4_A.tif") == tuple(f"swir{n}" for n in range(1, 9))
    assert [spec.band(name).bit_depth for name in ("pan", "red", "swir3")] == [11, 11, 14]
    centers = [spec.band(name).center_nm for name in multispectral]
    assert centers == sorted(centers)  # type: ignore[type-var]


def test_sentinel2_orders_follow_band_numbers_with_8a_after_8() -> None:
    l1c, l2a = sensor_spec("sentinel2-l1c"), sensor_spec("sentinel2-l2a")
    full = l1c.order_for(13)
    assert full is not None
    assert [l1c.band(name).aliases[0] for name in full][7:11] == ["B08", "B8A", "B09", "B10"]
    assert l2a.order_for(12) == tuple(name for name in full if name != "cirrus")
    ten = l2a.order_for(10)
    assert ten == tuple(name for name in full if l1c.band(name).gsd_m != 60)
    assert l2a.order_for(4) is None  # ESA delivers no such stack: nobody knows its order
    assert (l2a.scale, l2a.offset, l2a.nodata) == (0.0001, -0.1, 0)
    assert {(band.scale, band.offset) for band in l2a.bands} == {(0.0001, -0.1)}


def test_dstl_has_its_ten_classes_with_their_numbers_and_they_overlap() -> None:
    spec = class_spec("DSTL")
    assert spec.overlapping
    assert [item.id for item in spec.classes] == list(range(1, 11))
    assert spec.class_names == (
        "Buildings", "Misc. Manmade structures", "Road", "Track", "Trees", "Crops", "Waterway",
        "Standing water", "Vehicle Large", "Vehicle Small",
    )  # fmt: skip
    assert not class_spec("landcover").overlapping
    assert class_spec("buildings").class_names == ("building",)


@pytest.mark.parametrize("name", specs.list_classes())
def test_classes_have_distinct_names_numbers_and_colours(name: str) -> None:
    items = class_spec(name).classes
    for field in ("name", "id", "color"):
        assert len({getattr(item, field) for item in items}) == len(items)


def test_names_and_aliases_of_documents_are_distinct_and_lead_back() -> None:
    seen: dict[str, str] = {}
    for find, names in ((sensor_spec, SENSORS), (class_spec, specs.list_classes())):
        for name in names:
            for word in {documents.folded(text) for text in (name, *find(name).aliases)}:
                assert seen.setdefault(word, name) == name
                assert find(word).name == name
                assert specs.find_document(word) is find(name)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SENSORS), st.data())
def test_case_hyphens_and_underscores_do_not_count_in_names(name: str, data: st.DataObject) -> None:
    letters = data.draw(st.lists(st.sampled_from(["", "-", "_"]), min_size=len(name), max_size=len(name)))
    upper = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    spelt = "".join(c.upper() * u + c * (not u) + s for c, u, s in zip(name, upper, letters, strict=True))
    assert sensor_spec(spelt).name == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [("worldview-3", "worldview3"), ("WV3", "worldview3"), ("landsat8", "landsat89_oli"),
     ("Landsat-9", "landsat89_oli"),
     ("sentinel2-l2a", "sentinel2_l2a"), ("Sentinel-2", "sentinel2_l2a"), ("landsat7", "landsat7_etm"),
     ("naip", "naip_rgbn"), ("SuperDove", "planetscope_8band")],
)  # fmt: skip
def test_common_names_find_the_sensor(alias: str, name: str) -> None:
    assert sensor_spec(alias).name == name


@pytest.mark.parametrize("name", SENSORS)
def test_every_band_is_found_by_name_and_alias_in_any_case(name: str) -> None:
    spec = sensor_spec(name)
    for band in spec.bands:
        for word in (band.name, *band.aliases):
            assert spec.band(word.upper()) is band
            assert spec.resolve(word.replace("_", "-").title()) == band.name
    assert spec.resolve("no such band") is None
    assert spec.resolve("") is None


def test_unknown_band_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BandError, match=r"worldview3 has no band 'nir3'; did you mean 'nir\d'\?") as caught:
        sensor_spec("worldview3").band("nir3")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["worldview9", "landsta5_tm", "sentinal2_l2a"])
def test_unknown_sensor_is_refused_with_the_nearest_name(name: str) -> None:
    with pytest.raises(SpecError, match=rf"unknown sensor '{name}'; did you mean '\w+'\?") as caught:
        sensor_spec(name)
    assert caught.value.code == "E-SPEC-001"


def test_hopeless_names_are_refused_with_the_list() -> None:
    with pytest.raises(SpecError, match=r"known: .*pleiades.*worldview3"):
        sensor_spec("qqq")
    with pytest.raises(SpecError, match=r"unknown class list 'qqq'; known: buildings, dstl, dstl_2017, .*landcover"):
        class_spec("qqq")
    with pytest.raises(SpecError, match=r"unknown sensor or class list 'qqq'; known: .*rgb.*dstl"):
        specs.find_document("qqq")


def test_missing_file_is_refused_with_the_shipped_names(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"does not exist; .*did you mean 'worldview3'") as caught:
        sensor_spec(tmp_path / "worldviev3.toml")
    assert caught.value.code == "E-SPEC-002"
    with pytest.raises(SpecError, match=r"none\.toml: does not exist; .*known: .*rgb.*dstl"):
        class_spec("none.toml")


@pytest.mark.parametrize("place", ["", "/dev/null"])
def test_folders_and_devices_are_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(SpecError, match="is not a regular file"):
        load_document(place or tmp_path)


def test_a_class_list_is_no_sensor_and_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="kind is 'classes', not 'sensor'") as caught:
        sensor_spec(written(tmp_path, CLASSES))
    assert caught.value.code == "E-SPEC-008"
    with pytest.raises(SpecError, match="kind is 'sensor', not 'classes'"):
        class_spec(str(written(tmp_path, PLAIN)))
    assert specs.find_document(tmp_path / "camera.toml") == sensor_spec(tmp_path / "camera.toml")


@pytest.mark.parametrize("name", ["my camera.toml", "Kamera-ä.toml", "-x.toml", "#1%.toml", "plain"])
def test_user_documents_may_have_any_name(tmp_path: Path, name: str) -> None:
    spec = sensor_spec(written(tmp_path, PLAIN, name))
    assert spec.band_names == ("red", "nir")
    assert spec.name == Path(name).stem


def test_a_changed_user_document_is_read_anew(tmp_path: Path) -> None:
    assert sensor_spec(written(tmp_path, PLAIN)).bit_depth == 12
    assert sensor_spec(written(tmp_path, PLAIN.replace("bit_depth = 12", "bit_depth = 10"))).bit_depth == 10


def test_documents_inside_the_package_win_over_those_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data_specs" / "sensors"
    folder.mkdir(parents=True)
    written(folder, PLAIN, "inside.toml")
    caches = (specs._shipped_files, specs._shipped, specs._stem_of)
    monkeypatch.setattr(specs.importlib.resources, "files", lambda package: tmp_path)
    for cached in caches:
        cached.cache_clear()
    try:
        assert specs.list_sensors() == ("inside",)
        assert set(specs.list_classes()) >= {"buildings", "dstl", "landcover"}
    finally:
        for cached in caches:
            cached.cache_clear()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_specs_survive_json_and_pickle_and_cannot_be_changed(path: Path) -> None:
    spec = load_document(path)
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    assert type(spec).model_validate(spec.model_dump(mode="json")) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(spec.model_copy(deep=True))
    with pytest.raises(ValidationError, match="frozen"):
        spec.title = "other"  # type: ignore[misc]


def test_bands_take_what_they_lack_from_the_sensor(tmp_path: Path) -> None:
    text = PLAIN.replace("bit_depth = 12", "bit_depth = 12\ngsd_m = 8\nscale = 0.5\noffset = -1").replace(
        "gsd_m = 4.0,", "bit_depth = 14, scale = 2.0,"
    )
    red, nir = sensor_spec(written(tmp_path, text)).bands
    assert (red.gsd_m, red.bit_depth, red.scale, red.offset) == (2, 12, 0.5, -1)
    assert (nir.gsd_m, nir.bit_depth, nir.scale, nir.offset) == (8, 14, 2, -1)
    assert red.center_nm == 650


def test_nodata_may_be_nan_and_tables_may_be_indented_by_tabs(tmp_path: Path) -> None:
    text = PLAIN.replace("bit_depth = 12", "\tnodata\t=\tnan").replace("\n  {", "\n\t{").replace("\n", "\r\n")
    nodata = sensor_spec(written(tmp_path, text)).nodata
    assert nodata != nodata


def test_equally_long_products_give_no_order_unless_one_is_the_default(tmp_path: Path) -> None:
    more = '\n[[products]]\nname = "{}"\nbands = [{}]\n'
    singles = more.format("a", '"red"') + more.format("b", '"nir"')
    several = PLAIN + more.format("reverse", '"nir", "red"') + singles
    spec = sensor_spec(written(tmp_path, several))
    assert spec.order_for(2) == ("red", "nir")
    assert spec.order_for(1) is None
    same = sensor_spec(written(tmp_path, PLAIN + more.format("a", '"nir"') + more.format("b", '"nir"')))
    assert same.order_for(1) == ("nir",)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_tables_have_a_row_for_each_band_or_class_and_html_escapes_them(path: Path) -> None:
    spec = load_document(path)
    header, *body = spec.rows()
    assert {len(row) for row in body} == {len(header)}
    kind = {"sensor": "band_names", "classes": "class_names", "indices": "index_names"}[spec.kind]
    names = getattr(spec, kind)
    assert [next(name for name in row if name in names) for row in body] == list(names)
    hostile = spec.model_copy(update={"title": "<script>", "source": "a & <b>"})
    html = hostile._repr_html_()
    assert "<script>" not in html
    assert "a &amp; &lt;b&gt;" in html
    assert html.count("<tr>") == len(body) + 1


def test_json_schema_knows_every_key_that_shipped_documents_use() -> None:
    for path in DOCUMENTS:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        schema = specs.json_schema(content["kind"])
        assert schema["additionalProperties"] is False
        assert set(content) <= set(schema["properties"])
        assert set(schema["required"]) <= set(content)
