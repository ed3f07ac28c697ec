"""Rules of classes as data: refused where they cannot hold, carried by the card, applied by detection."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import shapely

import satseg
from satseg.classes import ClassItem, ClassSpec, ShapeRule, erasing_order, rule_fault, rules_among
from satseg.errors import SpecError
from satseg.learning.card import CHECKSUM, ModelCard, checksum
from satseg.learning.networks.bundle import read_card
from satseg.learning.networks.model import Model, load_model
from satseg.ledger import Ledger
from satseg.specs import class_spec, load_document
from tests.commands import same_features
from tests.factories import write_tiff
from tests.worlds import scene_with_gaps, tiny_model

RULES = {
    "a": {"erases": ("b",), "buffer_m": 0.7, "simplify_m": 0.4, "min_area_m2": 1.0},
    "b": {"becomes": (ShapeRule(to="a", below_m2=3.0, rounder_than=0.5),), "min_hole_m2": 2.0},
}


def ruled_model(**options: object) -> Model:
    model = tiny_model(**options)
    classes = tuple(item.model_copy(update=RULES.get(item.name, {})) for item in model.card.classes)
    return replace(model, card=model.card.model_copy(update={"classes": classes}))


def item(name: str, number: int = 1, **rules: object) -> ClassItem:
    return ClassItem(name=name, id=number, color="#336699", **rules)


def document(tmp_path, classes: str):
    path = tmp_path / "mine.toml"
    path.write_text(f'kind = "classes"\ntitle = "Mine"\nsource = "me"\nclasses = [\n{classes}\n]\n')
    return path


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ('erases = ["moon"]', "'a' erases 'moon'"),
        ('erases = ["a"]', "'a' erases 'a'"),
        ('erases = ["b"]', "in a circle"),
        ('becomes = [{ to = "moon", below_m2 = 3 }]', "'a' becomes 'moon'"),
        ('becomes = [{ to = "b" }]', "no condition"),
        ('becomes = [{ to = "b", rounder_than = 1.5 }]', "rounder_than"),
        ("simplify_m = -1", "simplify_m"),
        ("buffer_m = inf", "buffer_m"),
        ("bufer_m = 1", "bufer_m"),
    ],
)
def test_rules_that_cannot_hold_are_refused_with_their_line(tmp_path, rules, words):
    path = document(tmp_path, f'{{ name = "a", id = 1, color = "#336699", {rules} }},\n'
                    '{ name = "b", id = 2, color = "#336699", erases = ["a"] },')  # fmt: skip
    with pytest.raises(SpecError, match=words) as caught:
        load_document(path)
    assert "line " in str(caught.value)


def test_what_erases_is_settled_before_what_it_erases():
    water, roof, road = item("water", erases="all"), item("roof", erases=("road",)), item("road")
    assert erasing_order((road, roof, water)) == (2, 1, 0)
    assert rule_fault((road, roof, water)) is None
    assert rule_fault((item("x", erases="all"), item("y", erases="all"))) is not None


def test_rules_of_classes_that_are_not_learnt_are_left_out():
    water = item("water", erases=("roof", "road"), becomes=(ShapeRule(to="pond", below_m2=5.0),))
    kept = rules_among((water, item("road", 2)))
    assert kept[0].erases == ("road",)
    assert kept[0].becomes == ()
    assert rules_among((item("x", erases="all"),))[0].erases == "all"


def test_the_shipped_rules_are_those_of_2017():
    spec = class_spec("dstl")
    names = [spec.class_names[k] for k in erasing_order(spec.classes)]
    assert names.index("Waterway") < names.index("Buildings") < names.index("Standing water") < names.index("Road")
    assert ClassSpec.model_validate(json.loads(spec.model_dump_json())) == spec


def test_rules_survive_the_model_file(tmp_path):
    model = ruled_model()
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device="cpu")
    assert loaded.card.classes == model.card.classes
    assert "rules   a: buffer 0.7 m; simplify 0.4 m; erases b" in loaded.summary()
    assert read_card(tmp_path / "m.safetensors").info()["classes"][1]["rules"] == [
        "becomes a if below_m2 3 and rounder_than 0.5"
    ]


def test_a_card_from_before_rules_loads_without_any():
    content = json.loads(tiny_model().card.to_json())
    for one in content["classes"]:
        for key in ("buffer_m", "simplify_m", "erases", "becomes"):
            del one[key]
    assert content.pop(CHECKSUM) != checksum(content)
    card = ModelCard.model_validate(content)
    assert card == tiny_model().card
    assert not any(one.has_rules for one in card.classes)


def test_a_card_with_rules_in_a_circle_is_refused():
    card = tiny_model().card
    classes = tuple(one.model_copy(update={"erases": "all"}) for one in card.classes)
    with pytest.raises(ValueError, match="in a circle"):
        ModelCard.model_validate({**card.model_dump(), "classes": [one.model_dump() for one in classes]})


def test_detection_applies_the_rules_whatever_the_tiles(tmp_path):
    model, scene = ruled_model(), scene_with_gaps(tmp_path, height=67, width=101)
    one = satseg.detect(model, scene, tile=32, halo="exact")
    other = satseg.detect(model, scene, tile=64, halo="exact")
    assert len(one)
    assert same_features(one, other)
    plain = satseg.detect(tiny_model(), scene, tile=32, min_area=1.0)
    assert len(plain) != len(one)
    a, b = (shapely.union_all(one.geometry[one.class_name == name].to_numpy()) for name in "ab")
    assert shapely.intersection(a, b).area <= 0.001 * a.length
    assert one.geometry.is_valid.all()


def test_without_rules_detection_is_what_it_was(tmp_path):
    scene = scene_with_gaps(tmp_path)
    sizes = [{"min_area_m2": 1.0}, {"min_hole_m2": 2.0}]
    model = tiny_model()
    classes = tuple(one.model_copy(update=size) for one, size in zip(model.card.classes, sizes, strict=True))
    model = replace(model, card=model.card.model_copy(update={"classes": classes}))
    satseg.pipeline.detect_to_file(ruled_model(), scene, tmp_path / "off.gpkg", rules=False)
    satseg.pipeline.detect_to_file(model, scene, tmp_path / "plain.gpkg")
    assert same_features(satseg.read_features(tmp_path / "off.gpkg"), satseg.read_features(tmp_path / "plain.gpkg"))


def test_a_resumed_detection_has_the_rules_of_the_first(tmp_path, monkeypatch):
    model, scene = ruled_model(), scene_with_gaps(tmp_path, height=67, width=101)
    whole, stopped = tmp_path / "whole.geojson", tmp_path / "stopped.geojson"
    options = {"tile": 32, "halo": 8}
    satseg.pipeline.detect_to_file(model, scene, whole, **options)
    append = Ledger.append

    def appended(self, planes):
        append(self, planes)
        if self.finished == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "append", appended)
    with pytest.raises(KeyboardInterrupt):
        satseg.pipeline.detect_to_file(model, scene, stopped, **options)
    monkeypatch.undo()
    with pytest.raises(satseg.errors.UsageError, match="rules"):
        satseg.pipeline.detect_to_file(model, scene, stopped, resume=True, rules=False, **options)
    satseg.pipeline.detect_to_file(model, scene, stopped, resume=True, **options)
    assert same_features(satseg.read_features(stopped), satseg.read_features(whole))


def test_a_scene_without_crs_takes_its_own_units(tmp_path):
    data = (np.random.default_rng(1).random((2, 60, 70)) * 2000).astype("uint16")
    scene = write_tiff(tmp_path / "bare.tif", data, crs=None, transform=None, descriptions=("red", "nir"))
    found = satseg.detect(ruled_model(), scene)
    assert found.crs is None
    assert (found.area_m2[found.class_name == "a"] >= 1.0).all()


def test_info_tells_the_rules_of_a_model(tmp_path, run):
    ruled_model().save(tmp_path / "m.safetensors")
    result = run("info", tmp_path / "m.safetensors")
    assert result.status == 0
    assert "erases b" in result.out
    told = json.loads(run("info", tmp_path / "m.safetensors", "--json").out)
    assert told["classes"][0]["rules"] == ["buffer 0.7 m", "simplify 0.4 m", "erases b"]
    scene, out = scene_with_gaps(tmp_path), tmp_path / "f.gpkg"
    assert run("detect", tmp_path / "m.safetensors", scene, "-o", out, "--no-rules").status == 0
