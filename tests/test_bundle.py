"""Model files: what goes in comes out, what was changed is refused, and nothing in them ever runs."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pydantic
import pytest
import safetensors
import safetensors.torch
import shapely
import torch

from satseg.errors import BandError, ModelError, OutputError, UsageError
from satseg.imagery.normalization import Normalization
from satseg.learning.card import (
    CHECKSUM,
    BandCard,
    FileHash,
    ModelCard,
    Training,
    TrainingSource,
    canonical,
    checksum,
)
from satseg.learning.machine import resolve_device
from satseg.learning.networks.architectures import architecture_of
from satseg.learning.networks.bundle import (
    METADATA_KEY,
    current_versions,
    digest_of,
    load_bundle,
    read_card,
    save_bundle,
)
from satseg.learning.networks.model import Model, load_model
from satseg.learning.networks.unet import UNet, UNetConfig
from satseg.specs import ClassItem

torch.set_num_threads(1)  # tensors this small only wait for the other threads
FOOTPRINT = shapely.box(0, 1, 2, 3).__geo_interface__  # coordinates are tuples, which JSON has not
TINY = UNetConfig(bands=2, classes=1, width=2, depth=2, stem=2)


def tiny_network(config: UNetConfig = TINY) -> UNet:
    network = UNet(config, generator=torch.Generator().manual_seed(0))
    network.train()(torch.randn(2, config.bands, 16, 16, generator=torch.Generator().manual_seed(1)))
    return network.eval()


def card_of(network: UNet, **changes) -> ModelCard:
    fields = {
        "architecture": architecture_of(network),
        "bands": (BandCard(name="red", center_nm=660.0, low_nm=630.0, high_nm=690.0), BandCard(name="nir1")),
        "gsd_m": 0.3,
        "normalization": Normalization(("red", "nir1"), (0.1, 2.0), (3.0, 1 / 3), (0.0, -1.0), (10.0, 11.0)),
        "classes": (ClassItem(name="bâtiment", id=7, color="#ff0000", threshold=0.4, min_area_m2=2.5),),
        "halo": network.halo,
        "stride": network.stride,
        "training": Training(
            sources=(TrainingSource(files=(FileHash(name="a.tif", sha256="0" * 64),), crs="EPSG:32633",
                                    bounds=(0.0, 1.0, 2.0, 3.0), footprint=dict(FOOTPRINT)),),
            steps=5, seconds=1.5, seed=0, options={"loss": "bce", "zoom": [0.7, 1.4]},
        ),
        "scores": {"jaccard": {"bâtiment": 0.5, "pool": None}},
        "versions": current_versions(),
    }  # fmt: skip
    return ModelCard(**{**fields, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    network = tiny_network()
    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    save_bundle(path, network, card_of(network))
    return path


@pytest.fixture
def spoilt(tmp_path):
    """Write bytes under a model's name and return the code with which loading refuses them."""
    path = tmp_path / "spoilt.safetensors"

    def refusal(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            load_bundle(path)
        assert caught.value.exit_code == 3
        assert str(path) in str(caught.value)
        return caught.value.code

    return refusal


def repacked(saved: Path, change, *, seal: bool = True) -> bytes:
    """The file at `saved` with its card changed and, if `seal`, a fitting checksum."""
    with safetensors.safe_open(saved, "pt") as stream:
        document = json.loads(stream.metadata()[METADATA_KEY])
    change(document)
    if seal:
        document[CHECKSUM] = checksum(document)
    return safetensors.torch.save(safetensors.torch.load_file(saved), {METADATA_KEY: canonical(document)})


def test_network_and_card_come_back_as_they_were_saved(saved):
    network, loaded, card = tiny_network(), *load_bundle(saved)
    x = torch.randn(1, 2, 24, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert torch.equal(loaded(x), network(x))
    assert not loaded.training
    assert all(weight.requires_grad and weight.device.type == "cpu" for weight in loaded.parameters())
    assert card.model_copy(update={"weights_sha256": None}) == card_of(network)
    assert card.weights_sha256 == digest_of(network.state_dict())
    assert read_card(saved) == card


@pytest.mark.parametrize("norm", ["batch", "channel", "none"])
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_every_kind_of_network_is_kept(tmp_path, norm, upsampling):
    config = dataclasses.replace(TINY, norm=norm, upsampling=upsampling, stem=1, activation="elu", crop=2)
    network = tiny_network(config).to(memory_format=torch.channels_last)
    save_bundle(tmp_path / "m.safetensors", network, card_of(network))
    loaded, _ = load_bundle(tmp_path / "m.safetensors")
    assert loaded.config == config
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_equal_models_are_equal_files(saved, tmp_path):
    network = tiny_network()
    save_bundle(tmp_path / "again.safetensors", network, card_of(network))
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_loaded_network_goes_on_learning(saved):
    network, _ = load_bundle(saved)
    network.train()(torch.ones(2, 2, 8, 8)).sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_every_cut_is_refused(saved, spoilt):
    content = saved.read_bytes()
    lengths = random.Random(0).sample(range(len(content)), 200)
    assert {spoilt(content[:length]) for length in (*lengths, 0, 1, 8, 9)} <= {"E-MOD-012", "E-MOD-014"}


def test_every_changed_byte_is_refused(saved, spoilt):
    content = saved.read_bytes()
    draw = random.Random(1)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*draw.sample(range(header), 150), *draw.sample(range(header, len(content)), 100)]
    codes = set()
    for place in places:
        changed = bytearray(content)
        changed[place] ^= draw.randrange(1, 256)
        codes.add(spoilt(bytes(changed)))
    assert {"E-MOD-014", "E-MOD-015", "E-MOD-018"} <= codes


def test_changed_weight_and_changed_padding_are_refused(saved, spoilt):
    content = saved.read_bytes()
    assert spoilt(content[:-1] + bytes([content[-1] ^ 1])) == "E-MOD-018"
    header = 8 + int.from_bytes(content[:8], "little")
    padded = header + 8
    longer = (padded - 8).to_bytes(8, "little") + content[8:header] + b" " * 7 + b"\t" + content[header:]
    assert spoilt(longer) == "E-MOD-014"


def test_appended_bytes_are_refused(saved, spoilt):
    assert spoilt(saved.read_bytes() + b"\0") == "E-MOD-014"


def test_edited_card_is_refused(saved, spoilt):
    change = lambda card: card["classes"][0].update(threshold=0.9)  # noqa: E731
    assert spoilt(repacked(saved, change, seal=False)) == "E-MOD-015"


def test_card_of_equal_content_in_another_form_is_refused(saved, spoilt):
    with safetensors.safe_open(saved, "pt") as stream:
        loose = json.dumps(json.loads(stream.metadata()[METADATA_KEY]))
    weights = safetensors.torch.load_file(saved)
    assert spoilt(safetensors.torch.save(weights, {METADATA_KEY: loose})) == "E-MOD-015"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda card: card.update(format_version=2), "E-MOD-017"),
        (lambda card: card.update(format_version="1"), "E-MOD-016"),
        (lambda card: card.update(run_me="now"), "E-MOD-016"),
        (lambda card: card["normalization"].update(gain=[1, 1]), "E-MOD-016"),
        (lambda card: card["normalization"].update(scale=[0, 1]), "E-MOD-016"),
        (lambda card: card.pop("bands"), "E-MOD-016"),
        (lambda card: card["bands"].reverse(), "E-MOD-016"),
        (lambda card: card["architecture"].update(name="os.system"), "E-MOD-016"),
        (lambda card: card["architecture"]["arguments"].update(shell="sh"), "E-MOD-019"),
        (lambda card: card["architecture"]["arguments"].update(width=3), "E-MOD-019"),
        (lambda card: card["architecture"]["arguments"].update(width=2048, depth=3), "E-MOD-019"),
        (lambda card: card["architecture"]["arguments"].update(depth=10**6), "E-MOD-019"),
        (lambda card: card["architecture"]["arguments"].update(width="2"), "E-MOD-019"),
        (lambda card: card.update(stride=8), "E-MOD-019"),
        (lambda card: card.update(weights_sha256="0" * 64), "E-MOD-018"),
    ],
)
def test_sealed_card_that_makes_no_sense_is_refused(saved, spoilt, change, code):
    assert spoilt(repacked(saved, change)) == code


class Canary:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_refused_and_never_run(tmp_path, suffix):
    canary = tmp_path / "canary"
    stream = io.BytesIO()
    torch.save({"state_dict": Canary(canary)}, stream)
    pickles = [pickle.dumps(Canary(canary), protocol) for protocol in range(6)]
    pickles += [stream.getvalue(), *(zipped(content) for content in pickles)]
    for content in pickles:
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        for read in (load_bundle, load_model, read_card):
            with pytest.raises(ModelError, match="run code") as caught:
                read(path)
            assert caught.value.code in {"E-MOD-011", "E-MOD-012"}
    assert not canary.exists()
    pickle.loads(pickles[0])
    assert canary.exists()  # it would have sung


def test_other_files_are_named_for_what_they_are(saved, spoilt):
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    assert spoilt(zipped(b"")) == "E-MOD-011"
    assert spoilt(array.getvalue()) == "E-MOD-011"
    assert spoilt(b"weights: none\n") == "E-MOD-012"
    assert spoilt(b"") == "E-MOD-012"
    weights = safetensors.torch.load_file(saved)
    assert spoilt(safetensors.torch.save(weights)) == "E-MOD-013"
    assert spoilt(safetensors.torch.save(weights, {"format": "pt"})) == "E-MOD-013"
    deep = json.dumps({"__metadata__": {METADATA_KEY: "[" * 10**5}}).encode()
    assert spoilt(len(deep).to_bytes(8, "little") + deep) == "E-MOD-015"
    nested = b'{"a":' + b"[" * 10**5 + b"}"
    assert spoilt(len(nested).to_bytes(8, "little") + nested) == "E-MOD-014"


def test_missing_file_folder_and_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("none", "does not exist"), (".", "no regular file"), ("pipe", "no regular file")):
        with pytest.raises(ModelError, match=words) as caught:
            load_bundle(tmp_path / name)
        assert caught.value.code == "E-MOD-010"


def test_existing_file_is_replaced_only_when_asked(saved, tmp_path):
    network = tiny_network()
    path = tmp_path / "m.safetensors"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        save_bundle(path, network, card_of(network))
    assert path.read_text() == "mine"
    save_bundle(path, network, card_of(network), overwrite=True)
    assert path.read_bytes() == saved.read_bytes()
    assert [item.name for item in tmp_path.iterdir()] == ["m.safetensors"]


def test_file_that_does_not_read_back_is_not_published(tmp_path, monkeypatch):
    network = tiny_network()
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: write(path, content[:-4]))
    with pytest.raises(OutputError, match="did not read back") as caught:
        save_bundle(tmp_path / "m.safetensors", network, card_of(network))
    assert caught.value.code == "E-OUT-050"
    assert list(tmp_path.iterdir()) == []


def test_card_of_another_network_is_not_saved(tmp_path):
    network, other = tiny_network(), tiny_network(dataclasses.replace(TINY, width=3))
    with pytest.raises(ModelError, match="another network"):
        save_bundle(tmp_path / "m.safetensors", network, card_of(other))
    assert list(tmp_path.iterdir()) == []


def test_digest_depends_on_names_types_shapes_and_values():
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    variants = [
        base,
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].view(torch.int32), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({digest_of(variant) for variant in variants}) == len(variants)
    assert digest_of(dict(reversed(base.items()))) == digest_of(base)


@pytest.mark.parametrize(
    "changes",
    [
        {"bands": (BandCard(name="nir1"), BandCard(name="red"))},
        {"classes": tuple(ClassItem(name=name, id=1, color="#000000") for name in "ab")},
        {"scores": {"jaccard": float("nan")}},
        {"scores": {"jaccard": 1j}},
        {"gsd_m": 0.0},
        {"gsd_m": float("inf")},
        {"stride": 0},
        {"note": "x"},
    ],
    ids=str,
)
def test_card_whose_parts_do_not_fit_cannot_be_made(changes):
    with pytest.raises(pydantic.ValidationError):
        card_of(tiny_network(), **changes)


def test_file_hash_is_sha256_of_the_content(tmp_path):
    (tmp_path / "x.tif").write_bytes(b"abc")
    hashed = FileHash.of(tmp_path / "x.tif")
    assert hashed.name == "x.tif"
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert hashed.sha256 == known


def test_model_answers_for_its_card(saved, tmp_path):
    model = load_model(saved, device="cpu")
    assert model.bands == ("red", "nir1")
    assert model.classes == ("bâtiment",)
    assert model.thresholds == {"bâtiment": 0.4}
    assert (model.halo, model.stride) == (model.network.halo, model.network.stride)
    model.save(tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == saved.read_bytes()


def test_scene_without_a_needed_band_is_refused_with_both_lists(saved):
    model = load_model(saved, device="cpu")
    model.check_bands(("nir1", "green", "red"))
    with pytest.raises(BandError, match=r"\('red', 'green'\).*\('red', 'nir1'\): nir1 missing") as caught:
        model.check_bands(["red", "green"])
    assert caught.value.code == "E-BAND-052"


def test_notebook_view_escapes_what_a_card_says():
    network = tiny_network()
    card = card_of(network, licence="<script>alert(1)</script>", scores={"<b>": 1})
    shown = Model(card, network, torch.device("cpu"))._repr_html_()
    assert "<script>" not in shown
    assert "<b>&" not in shown
    assert "bâtiment (from 0.40)" in shown


def test_device_names_resolve():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps", ""])
def test_unknown_device_is_a_usage_error(name):
    with pytest.raises(UsageError, match="not known") as caught:
        resolve_device(name)
    assert caught.value.exit_code == 2


def test_missing_gpu_is_a_usage_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cuda") == torch.device("cuda")
    with pytest.raises(UsageError, match="2 CUDA devices"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="0 CUDA devices"):
        resolve_device("cuda")
