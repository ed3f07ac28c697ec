"""Export: an ONNX file that explains itself and computes what the network computes, at every size."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from satseg.errors import DependencyError, OutputError
from satseg.learning.card import ModelCard
from satseg.learning.networks.export import OPSET, export_onnx, noise_for, onnx_bytes
from tests.worlds import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(stem=2, depth=2, crop=3, activation="silu")


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    file = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(model, file)
    return file


def test_the_file_computes_the_logits_at_every_size(model, path):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    for batch, height, width in ((1, 8, 8), (3, 8, 60), (1, 100, 12)):
        image = torch.randn((batch, 2, height, width), generator=torch.Generator().manual_seed(width))
        (found,) = session.run(["logits"], {"image": image.numpy()})
        expected = model.network(image).detach()
        assert found.shape == (batch, 2, height - 6, width - 6)
        assert abs(found - expected.numpy()).max() <= 1e-3


def test_the_file_is_valid_and_says_its_sizes_and_opset(path):
    onnx = pytest.importorskip("onnx")
    document = onnx.load(path)
    onnx.checker.check_model(document, full_check=True)
    assert {entry.domain: entry.version for entry in document.opset_import} == {"": OPSET}
    (given,), (result,) = document.graph.input, document.graph.output
    sizes = [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim]
    assert (given.name, sizes) == ("image", ["batch", 2, "4*rows", "4*cols"])
    assert result.name == "logits"
    assert not any(node.op_type == "BatchNormalization" for node in document.graph.node)


def test_the_card_travels_in_the_file(model, path):
    onnx = pytest.importorskip("onnx")
    (entry,) = [item for item in onnx.load(path).metadata_props if item.key == "satseg"]
    document = json.loads(entry.value)
    document.pop("card_sha256")
    assert ModelCard.model_validate(document) == model.card


def test_an_existing_file_is_kept_unless_asked(model, path):
    before = path.read_bytes()
    with pytest.raises(OutputError):
        export_onnx(model, path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_package_the_command_is_named_and_no_file_is_left(model, monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=r'pip install "satseg\[onnx\]"') as caught:
        export_onnx(model, tmp_path / "m.onnx")
    assert (caught.value.exit_code, caught.value.code) == (6, "E-DEP-010")
    assert not list(tmp_path.iterdir())


def test_noise_fits_the_network_and_is_wider_than_high():
    for network in ({}, {"stem": 4, "depth": 4}, {"crop": 50}, {"depth": 1}):
        made = tiny_model(**network)
        noise = noise_for(made, batch=2)
        assert noise.shape[0] == 2
        assert noise.shape[-2] < noise.shape[-1]
        assert made.network(noise).numel()
        assert torch.equal(noise, noise_for(made, batch=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        {"depth": 1},
        {"stem": 4, "norm": "channel", "activation": "gelu", "upsampling": "bilinear", "crop": 5},
        {"norm": "none", "activation": "elu", "upsampling": "transposed"},
    ],
)
def test_every_kind_of_unet_exports(network):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    made = tiny_model(**network)
    session = pytest.importorskip("onnxruntime").InferenceSession(onnx_bytes(made))
    for image in (noise_for(made), noise_for(made, batch=3)[..., : made.stride * 3, :]):
        (found,) = session.run(["logits"], {"image": image.numpy()})
        assert abs(found - made.network(image).detach().numpy()).max() <= 1e-3
