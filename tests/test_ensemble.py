"""Ensembles: the scores of several models become one, streamed, whatever the tiles and the order of the members."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import satseg
from satseg.errors import BandError, ModelError, UsageError
from satseg.imagery.normalization import Normalization
from satseg.learning.card import BandCard
from satseg.learning.detection import budget, job
from satseg.learning.networks.blending import Blending
from satseg.learning.networks.bundle import load_bundle
from satseg.learning.networks.ensemble import Ensemble, load_predictor, write_ensemble
from satseg.learning.networks.ensemble_file import ClassStacker, EnsembleFile, combined
from satseg.learning.networks.forward import Look, Wanted
from satseg.learning.networks.means import entropies
from satseg.learning.networks.model import Model
from tests.worlds import BANDS, scene_with_gaps, tiny_model

EXACT = {"halo": "exact", "tile": 400}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return satseg.open_scene(scene_with_gaps(tmp_path_factory.mktemp("scene")))


def other_bands(model: Model) -> Model:
    """`model` for the scene's bands in the other order, of other means."""
    bands = BANDS[::-1]
    normal = Normalization(bands, (300.0, 700.0), (100.0, 150.0), (0.0, 0.0), (2000.0, 2000.0))
    named = tuple(BandCard(name=name) for name in bands)
    return replace(model, card=model.card.model_copy(update={"bands": named, "normalization": normal}))


@pytest.fixture(scope="module")
def members():
    """Of other depths, strides, crops, bands and normalisations."""
    return (
        tiny_model(seed=1, depth=2),
        other_bands(tiny_model(seed=2, depth=3, stem=2)),
        tiny_model(seed=3, depth=2, crop=4),
    )


@pytest.fixture(scope="module")
def alone(members, scene):
    return [satseg.predict(model, scene, **EXACT) for model in members]


def logits_of(rasters):
    scores = np.stack([raster.data.astype(np.float64) for raster in rasters]).clip(1e-37, 1 - 1e-8)
    return np.log(scores / (1 - scores))


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_scores_are_the_mean_of_the_members(members, scene, alone, mean):
    """To the scene's very edge, though one member pads there, one is cropped, and their strides differ."""
    found = satseg.predict(members, scene, mean=mean, **EXACT)
    expected = combined(logits_of(alone), mean)
    np.testing.assert_array_equal(found.valid, alone[0].valid)
    np.testing.assert_allclose(found.data[:, found.valid], expected[:, found.valid], atol=2e-6)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_a_model_twice_is_the_model(scene, members, alone, mean):
    twice = satseg.predict([members[0], members[0]], scene, mean=mean, **EXACT)
    np.testing.assert_allclose(twice.data, alone[0].data, atol=2e-7)


def test_tiles_of_any_size_give_the_scores_of_the_whole_scene(members, scene):
    whole = satseg.predict(members, scene, **EXACT)
    for tile in (16, 70):
        found = satseg.predict(members, scene, halo="exact", tile=tile, batch_size=3)
        np.testing.assert_allclose(found.data, whole.data, atol=1e-4)


def test_the_order_of_members_changes_no_bit(members, scene):
    first, second = (satseg.predict(team, scene, tile=64) for team in (members, members[::-1]))
    assert first.data.tobytes() == second.data.tobytes()


def test_views_and_members_have_one_mean(members, scene):
    found = satseg.predict(members, scene, tta="flips", mean="geometric", **EXACT)
    views = [satseg.predict(model, scene, tta="flips", mean="geometric", **EXACT) for model in members]
    expected = combined(logits_of(views), "geometric")
    np.testing.assert_allclose(found.data[:, found.valid], expected[:, found.valid], atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["arithmetic", "geometric"]), st.integers(2, 4), st.integers(0, 2**31), st.sampled_from([1, 9, 60]),
)  # fmt: skip
def test_blending_is_what_the_file_says(mean, count, seed, spread):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(count, 3, 4, 5)) * spread).astype(np.float32)
    stacker = ClassStacker(weights=tuple(rng.normal(size=count)), bias=float(rng.normal()))
    blend = Blending(mean, 3, ((0, 1, 2),) * count, ((1, stacker),), apart=True).begin()
    for one in logits:
        blend.add(torch.from_numpy(one))
    expected = combined(logits, mean, (None, stacker, None))
    np.testing.assert_allclose(blend.logits().sigmoid(), expected, atol=2e-6)
    scores = torch.from_numpy(logits).sigmoid()
    bits = (entropies(scores.mean(dim=0)) - entropies(scores).mean(dim=0)).amax(dim=0)
    np.testing.assert_allclose(blend.disagreement()[0], bits, atol=1e-5)


def test_cores_are_the_mean_of_the_members_that_learnt_them(scene):
    with_cores, without = tiny_model(seed=1, separated=("b",)), tiny_model(seed=2)
    team = Ensemble.of([without, with_cores])
    assert (team.separated, team.cores) == (("b",), ((1, 2),))
    blend = Blending.of(team, "arithmetic").begin()
    for member in team.members:
        blend.add(torch.full((len(member.classes) + len(member.separated), 2, 3), 1.0 + len(member.separated)))
    expected = torch.tensor([1.0, 2.0]).sigmoid().mean()
    torch.testing.assert_close(blend.logits()[:2].sigmoid(), expected.expand(2, 2, 3))
    torch.testing.assert_close(blend.logits()[2], torch.full((2, 3), 2.0))
    assert len(satseg.detect(team, scene, threshold=0.4, min_area=0.0))


def test_disagreement_is_none_where_all_say_the_same_and_one_bit_at_most():
    same = Blending("arithmetic", 1, ((0,), (0,)), apart=True).begin()
    apart = Blending("arithmetic", 1, ((0,), (0,)), apart=True).begin()
    unsure = torch.tensor([[[0.0, -2.0, 30.0]]])
    for sign in (1.0, -1.0):
        same.add(unsure)
        apart.add(sign * torch.tensor([[[0.0, 2.0, 40.0]]]))
    assert same.disagreement().max() < 1e-6
    found = apart.disagreement()[0, 0]
    assert found[0] < 1e-6 < found[1] < found[2]
    assert found[2] == pytest.approx(1.0)


def saved(folder, *models):
    paths = [folder / f"{number}.safetensors" for number in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        model.save(path)
    return paths


@pytest.fixture
def files(tmp_path, members):
    return saved(tmp_path, *members)


def test_a_file_is_the_ensemble_it_names(tmp_path, files, members, scene):
    place = tmp_path / "team.toml"
    write_ensemble(files, place, mean="geometric")
    found = satseg.predict(place, scene)
    expected = satseg.predict(members, scene, mean="geometric")
    assert found.data.tobytes() == expected.data.tobytes()
    assert load_predictor(place).mean == "geometric"
    inside = satseg.predict(place, scene, mean="arithmetic")  # asked for, and so not that of the file
    assert inside.data.tobytes() == satseg.predict(members, scene).data.tobytes()


def test_a_stacker_and_thresholds_of_the_file_count(tmp_path, files, members, scene, alone):
    place = tmp_path / "team.toml"
    digests = [(path, load_bundle(path)[1].weights_sha256) for path in files]
    stacker = ClassStacker(weights=(0.7, -0.2, 0.9), bias=-0.3)
    made = EnsembleFile.of(digests, beside=place, thresholds={"a": 0.3}, stacker={"b": stacker})
    made.save(place)
    team = Ensemble.load(place)
    assert team.thresholds == {"a": 0.3, "b": 0.5}
    found = satseg.predict(team, scene, **EXACT)
    logits = logits_of(alone)
    expected = combined(logits, "arithmetic", (None, stacker))
    told = found.valid & (np.abs(logits).max(axis=(0, 1)) < 4)  # beyond, a score in float32 no longer tells its logit
    assert told.sum() > 500
    np.testing.assert_allclose(found.data[:, told], expected[:, told], atol=1e-5)


def test_thresholds_are_the_mean_of_the_members_and_clean_up_the_least(members):
    cards = [
        model.card.model_copy(update={"classes": tuple(
            item.model_copy(update={"threshold": level, "min_area_m2": 9 * level}) for item in model.card.classes
        )}) for model, level in zip(members[:2], (0.2, 0.8), strict=True)
    ]  # fmt: skip
    team = Ensemble.of([replace(model, card=card) for model, card in zip(members, cards, strict=False)])
    assert team.thresholds == pytest.approx({"a": 0.5, "b": 0.5})
    assert [item.min_area_m2 for item in team.items] == pytest.approx([1.8, 1.8])


def test_rules_that_members_do_not_share_are_refused_and_lengths_are_the_mean(scene):
    def ruled(seed, **rules):
        model = tiny_model(seed=seed, depth=2)
        items = (model.items[0].model_copy(update=rules), *model.items[1:])
        return replace(model, card=model.card.model_copy(update={"classes": items}))

    team = Ensemble.of([ruled(1, buffer_m=1.0, erases=("b",)), ruled(2, buffer_m=2.0, erases=("b",))])
    assert (team.items[0].buffer_m, team.items[0].erases) == (1.5, ("b",))
    with pytest.raises(ModelError, match="other rules of 'a': erases b and ") as refused:
        Ensemble.of([ruled(1, erases=("b",)), ruled(2)])
    assert refused.value.code == "E-MOD-045"


def test_a_member_that_was_trained_anew_is_refused(tmp_path, files):
    write_ensemble(files, tmp_path / "team.toml")
    shutil.copy(files[1], files[0])
    with pytest.raises(ModelError, match="other weights") as refused:
        Ensemble.load(tmp_path / "team.toml")
    assert refused.value.code == "E-MOD-040"


@pytest.mark.parametrize(
    ("other", "code", "says"),
    [
        ({"classes": ("a", "c")}, "E-MOD-041", "b .2. and a .1., c"),
        ({"classes": ("b", "a")}, "E-MOD-041", "other classes"),
        ({"gsd_m": 0.5}, "E-MOD-042", "that of the scene and 0.5 m"),
    ],
)
def test_models_that_do_not_fit_together_are_refused_by_what_differs(tmp_path, scene, other, code, says):
    pair = tiny_model(), tiny_model(**other)
    with pytest.raises(ModelError, match=says) as refused:
        satseg.predict(pair, scene)
    assert refused.value.code == code
    with pytest.raises(ModelError, match=r"0\.safetensors and .*1\.safetensors"):
        write_ensemble(saved(tmp_path, *pair), tmp_path / "team.toml")
    assert not (tmp_path / "team.toml").exists()


def test_one_model_is_no_ensemble(scene):
    with pytest.raises(UsageError, match="two models"):
        satseg.predict([tiny_model()], scene)


def test_a_single_model_has_nobody_to_disagree_with(tmp_path, scene):
    with pytest.raises(UsageError, match="nobody"):
        satseg.detect(tiny_model(), scene, disagreement=tmp_path / "d.tif")
    assert not list(tmp_path.iterdir())


def test_bands_that_any_member_needs_must_be_there(members, scene):
    with pytest.raises(BandError, match="nir"):
        satseg.predict(members, scene.select(["red"]))


def test_disagreement_is_written_as_bits_and_reads_as_computed(tmp_path, members, scene, alone):
    place = tmp_path / "d.tif"
    satseg.detect(members, scene, disagreement=place, **EXACT)
    written = satseg.open_scene(place)
    with written.reader() as reader:
        found = reader.read(written.grid.window)
    scores = torch.from_numpy(np.stack([raster.data for raster in alone]))
    bits = (entropies(scores.mean(dim=0)) - entropies(scores).mean(dim=0)).amax(dim=0).numpy()
    np.testing.assert_array_equal(found.valid, alone[0].valid)
    np.testing.assert_allclose(found.data[0][found.valid], bits[found.valid], atol=0.5 / 254 + 1e-5)


def test_the_way_by_torch_gives_what_the_compiled_way_gives(members, scene, monkeypatch):
    """On a GPU pixels are picked, normalised and blended by torch; the same code runs here on the CPU."""
    ours = satseg.predict(members, scene, tile=64, batch_size=2)
    monkeypatch.setattr(Look, "compiled", property(lambda look: False, lambda look, value: None), raising=False)
    theirs = satseg.predict(members, scene, tile=64, batch_size=2)
    np.testing.assert_array_equal(ours.valid, theirs.valid)
    np.testing.assert_allclose(ours.data, theirs.data, atol=2e-6)


def test_a_mean_of_another_name_is_refused(members, scene):
    with pytest.raises(UsageError, match=r"'harmonic' is not .*'arithmetic' or 'geometric'"):
        satseg.predict(members, scene, mean="harmonic")


def test_the_estimate_counts_all_members(members, scene):
    wanted, options = Wanted(scores="float32"), job.DetectOptions(tile=128)
    ready = [job.Detection.prepare(Ensemble.of(team), scene, options, wanted) for team in (members[:2], members)]
    ready.insert(0, job.Detection.prepare(members[0], scene, options, wanted))
    works = [budget.estimate(one.model, one.plan, one.working, memory=0, disk=0).work for one in ready]
    assert 1 < works[0] < 2 < works[1] < works[2]
    assert ready[0].memory < ready[1].memory
