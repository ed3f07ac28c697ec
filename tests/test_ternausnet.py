"""TernausNet: the papers' networks to the weight, started from VGG's weights for any bands, used as others are."""

from __future__ import annotations

import socket
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from satseg.errors import BandError, DependencyError, GridError, ModelError, UsageError
from satseg.imagery.normalization import Normalization
from satseg.imagery.scene import open_scene
from satseg.learning.card import BandCard, ModelCard
from satseg.learning.networks import ternausnet
from satseg.learning.networks.architectures import architecture_of, check_network, new_network, saved_network
from satseg.learning.networks.encoders import hold_encoder, parameter_groups
from satseg.learning.networks.folding import Convolution, lean
from satseg.learning.networks.model import Model, load_model
from satseg.learning.networks.ternausnet import TernausConfig, TernausNet
from satseg.learning.training import recipe
from satseg.learning.training.start import Start
from satseg.options import ModelOptions
from satseg.pipeline import predict, train
from satseg.run import RunConfig
from satseg.specs import ClassItem
from tests.factories import noise, write_tiff
from tests.worlds import squares

torch.set_num_threads(1)
BANDS = ("red", "nir")
SMALL = {
    "ternausnet11": ((2,), (3,), (4, 4), (5, 5), (5, 5)),
    "ternausnet16": ((2, 2), (3, 3), (4,) * 3, (5,) * 3, (5,) * 3),
}


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def thin(monkeypatch):
    """The same networks of a few filters, so that they cost next to nothing."""
    monkeypatch.setattr(ternausnet, "LEVELS", SMALL)
    monkeypatch.setattr(ternausnet, "RISEN", {"ternausnet11": (4, 4, 3, 3, 2), "ternausnet16": (4, 4, 4, 3, 2)})
    monkeypatch.setattr(ternausnet, "LAST", 3)


def net(*, bands: int = 2, classes: int = 1, **options) -> TernausNet:
    told = {name: options.pop(name) for name in ("arch", "upsampling") if name in options}
    return TernausNet(TernausConfig(bands=bands, classes=classes, **told), generator=seeded(), **options).eval()


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


# --- the networks of the papers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "options", "weights"),
    [
        (3, {"arch": "ternausnet11"}, 22_927_393),
        (11, {"arch": "ternausnet11"}, 22_932_001),
        (3, {"arch": "ternausnet16"}, 32_202_337),
        (3, {"arch": "ternausnet16", "upsampling": "bilinear"}, 29_306_465),
    ],
)
def test_weights_are_as_many_as_the_papers_networks_have(bands, options, weights):
    network = ternausnet.drafted(TernausConfig(bands=bands, classes=1, **options))
    assert count(network) == weights
    assert count(network.encoder) == {"ternausnet11": 9_220_480, "ternausnet16": 14_714_688}[options["arch"]] + (
        (bands - 3) * 64 * 9
    )


def test_unet11_gives_a_plane_per_class_at_full_size_and_starts_at_the_prior():
    network = net(bands=3, classes=2, prior=0.01)
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, 32, 32, generator=seeded()))
    assert logits.shape == (1, 2, 32, 32)
    assert float(logits.sigmoid().mean()) == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize("arch", ["ternausnet11", "ternausnet16"])
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "nearest"])
def test_every_way_of_doubling_gives_full_size_and_learns(thin, arch, upsampling):
    network = net(arch=arch, upsampling=upsampling)
    network(torch.randn(2, 2, 64, 96, generator=seeded())).square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    with pytest.raises(BandError, match="2 bands"):
        network(torch.zeros(1, 3, 32, 32))
    with pytest.raises(GridError, match="pad to 64 x 32"):
        network(torch.zeros(1, 2, 33, 32))


def test_the_encoder_is_vgg_with_the_names_of_its_weights():
    network = net(bands=3)
    weights = network.encoder.state_dict()
    places = (0, 3, 6, 8, 11, 13, 16, 18)  # where torchvision's features have convolutions
    assert set(weights) == {f"features.{place}.{kind}" for place in places for kind in ("weight", "bias")}
    x = torch.randn(1, 3, 32, 64, generator=seeded())
    with torch.inference_mode():
        levels = network.encoder(x)
        for place in places:
            x = F.relu(F.conv2d(x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1))
            if place in (0, 3, 8, 13, 18):
                torch.testing.assert_close(levels.pop(0), x)
                x = F.max_pool2d(x, 2)
    torch.testing.assert_close(levels[0], x)


@pytest.mark.parametrize(
    "options", [{"bands": 0}, {"classes": 4097}, {"arch": "ternausnet19"}, {"upsampling": "cubic"}], ids=str
)
def test_config_out_of_range_is_refused_by_name(options):
    with pytest.raises(UsageError, match=next(iter(options))) as caught:
        TernausConfig(**{"bands": 1, "classes": 1, **options})
    assert caught.value.code == "E-USE-052"


# --- used as other networks are ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["ternausnet11", "ternausnet16"])
def test_nothing_beyond_the_reach_acts_and_something_within_does(thin, arch):
    network = net(arch=arch).double()
    for weight in network.parameters():
        weight.detach().abs_()  # so that nothing is cut by an activation
    reach, stride = network.reach, network.stride
    assert reach % stride == 0
    image = torch.rand(1, 2, 2 * reach + stride, stride, generator=seeded(), dtype=torch.float64)
    far, near = image.clone(), image.clone()
    far[:, :, reach + stride :] += 3
    near[:, :, stride : 2 * stride] += 3
    with torch.inference_mode():
        rows, far_rows, near_rows = (network(x)[:, :, :stride] for x in (image, far, near))
    assert torch.equal(rows, far_rows)
    assert not torch.equal(rows, near_rows)


def model_of(network: TernausNet) -> Model:
    with torch.no_grad():
        network.head.weight.mul_(300)  # scores are spread, so that equality means something
    card = ModelCard(
        architecture=architecture_of(network),
        bands=tuple(BandCard(name=name) for name in BANDS),
        normalization=Normalization(BANDS, (120.0,) * 2, (60.0,) * 2, (0.0,) * 2, (2047.0,) * 2),
        classes=(ClassItem(name="a", id=1, color="#336699"),),
        halo=network.halo,
        stride=network.stride,
    )
    return Model(card, network, torch.device("cpu"))


def test_tiles_equal_the_whole_scene_and_a_saved_model_its_first(thin, tmp_path, monkeypatch):
    model = model_of(net())
    path = write_tiff(tmp_path / "s.tif", noise(2, 45, 2 * model.halo + 130), descriptions=BANDS)
    scene = open_scene(path)
    whole = predict(model, scene, tile=2048, halo="exact").data
    assert np.ptp(whole) > 0.01
    assert np.abs(predict(model, scene, tile=64, halo="exact").data - whole).max() < 1e-5
    model.save(tmp_path / "m.safetensors")
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a network was asked"))
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    loaded = load_model(tmp_path / "m.safetensors", device="cpu")
    assert loaded.card.architecture.name == "ternausnet"
    assert loaded.network.config == model.network.config
    assert np.array_equal(predict(loaded, scene, tile=2048, halo="exact").data, whole)


def test_a_card_that_asks_for_another_network_is_refused(thin):
    network = net()
    architecture = architecture_of(network)
    for change in ({"arch": "ternausnet16"}, {"upsampling": "nearest"}, {"bands": 5}, {"arch": "x"}, {"width": 3}):
        other = architecture.model_copy(update={"arguments": {**architecture.arguments, **change}})
        with pytest.raises((UsageError, RuntimeError, TypeError)):
            saved_network(other, network.state_dict())


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_it_is_folded_and_keeps_its_results(thin, upsampling):
    network, x = net(upsampling=upsampling), torch.randn(1, 2, 64, 32, generator=seeded())
    folded = lean(network, sample=x)
    units = [layer for layer in folded.modules() if isinstance(layer, Convolution)]
    assert sum(unit.activation is not None for unit in units) == 8 + (6 if upsampling == "transposed" else 11)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), network(x))


def test_it_runs_in_bfloat16(thin):
    network, x = net(), torch.randn(1, 2, 64, 32, generator=seeded())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), network(x).detach(), atol=0.02, rtol=0.05)


@pytest.mark.slow
def test_onnx_gives_the_same_logits(thin, tmp_path):
    from satseg.learning.networks.export import export_onnx

    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    model = model_of(net())
    export_onnx(model, tmp_path / "m.onnx")
    session = runtime.InferenceSession((tmp_path / "m.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    x = torch.randn(1, 2, 64, 96, generator=seeded())
    (found,) = session.run(None, {"image": x.numpy()})
    expected = model.network(x).detach().numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_groups_slow_down_towards_the_input_and_a_held_encoder_stays(thin):
    network = net().train()
    options = SimpleNamespace(freeze=0.5, encoder_rate=0.1, layer_decay=0.5)
    groups = parameter_groups(network, options)
    held = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(held) == sorted(map(id, network.parameters()))
    assert [group["factor"] for group in groups] == [0.0125, 0.025, 0.05, 0.1, 1.0]
    for share, learns in ((0.4, False), (0.5, True)):
        hold_encoder(network, options, share)
        assert {weight.requires_grad for weight in network.encoder.parameters()} == {learns}
        assert all(weight.requires_grad for weight in network.decoder.parameters())


# --- weights to start from -----------------------------------------------------------------------------------------


@pytest.fixture
def rgb(thin):
    """Weights of an encoder for three bands as torchvision saves them, its classifier too."""
    weights = {name: value.clone() for name, value in net(bands=3).encoder.state_dict().items()}
    return weights | {"classifier.0.weight": torch.zeros(3, 5), "classifier.0.bias": torch.zeros(3)}


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
@pytest.mark.parametrize("bands", [1, 3, 8])
def test_weights_of_vgg_are_read_and_the_first_layer_is_repeated_and_rescaled(rgb, tmp_path, kind, bands):
    path = tmp_path / f"vgg11{kind}"
    safetensors.torch.save_file(rgb, path) if kind == ".safetensors" else torch.save(rgb, path)
    taken = net(bands=bands, weights=str(path)).encoder.state_dict()
    first = rgb["features.0.weight"]
    wanted = first.sum(1, keepdim=True) if bands == 1 else first[:, [b % 3 for b in range(bands)]] * 3 / bands
    torch.testing.assert_close(taken["features.0.weight"], wanted)
    assert all(torch.equal(taken[name], rgb[name]) for name in taken if name != "features.0.weight")


def test_weights_serve_bands_by_the_nearest_wavelength(rgb, tmp_path):
    torch.save(rgb, tmp_path / "w.pth")
    centres = {"nir": 850.0, "blue": 480.0, "red": 660.0, "ndvi": None}
    options = ModelOptions(arch="ternausnet11", weights=tmp_path / "w.pth", inflate="wavelength")
    network = new_network(
        options, bands=4, classes=1, prior=0.1, generator=seeded(),
        cards=[BandCard(name=name, center_nm=nm) for name, nm in centres.items()],
    )  # fmt: skip
    first, found = rgb["features.0.weight"], network.encoder.features[0].weight
    for band, wanted in enumerate((first[:, 0] * 3 / 4, first[:, 2] * 3 / 2, first[:, 0] * 3 / 4, 0 * first[:, 0])):
        torch.testing.assert_close(found[:, band].detach(), wanted)


@pytest.mark.parametrize("change", [{"features.3.weight": torch.zeros(9, 2, 3, 3)}, {"bonus": torch.zeros(1)}])
def test_weights_of_another_encoder_are_refused(rgb, tmp_path, change):
    torch.save(rgb | change, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=next(iter(change))) as caught:
        net(weights=str(tmp_path / "w.pt"))
    assert caught.value.code == "E-MOD-021"


def test_published_weights_without_a_network_are_refused_at_once(monkeypatch, tmp_path):
    known = pytest.importorskip("huggingface_hub.constants", reason="needs the extra zoo")
    monkeypatch.setattr(known, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(known, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(ternausnet, "TernausNet", lambda *_, **__: pytest.fail("a network was built"))
    before = time.process_time()
    for arch in ("ternausnet11", "ternausnet16"):
        with pytest.raises(DependencyError, match="HF_HUB_OFFLINE is set") as caught:
            check_network(ModelOptions(arch=arch, weights="imagenet"))
        assert (caught.value.exit_code, caught.value.code) == (6, "E-DEP-012")
    with pytest.raises(UsageError, match="did you mean 'imagenet'"):
        check_network(ModelOptions(arch="ternausnet11", weights="imagnet"))
    assert time.process_time() - before < 3


def test_published_weights_are_where_the_library_has_them():
    encoders = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra zoo").encoders.encoders
    for name, sources in ternausnet.PUBLISHED.items():
        assert sources == {"imagenet": encoders[name]["pretrained_settings"]["imagenet"]}


# --- options -------------------------------------------------------------------------------------------------------


def test_options_name_it():
    options = RunConfig.from_options({"arch": "ternausnet16", "upsampling": "bilinear", "encoder_rate": 0.1}).model
    assert options.kind == "ternausnet"
    with torch.device("meta"):
        network = new_network(options, bands=3, classes=1, prior=0.1, generator=None)
    assert count(network) == 29_306_465


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch": "ternausnet11", "encoder": "vgg11"}, "an encoder of its own"),
        ({"arch": "ternausnet11", "width": 64, "stem": 4}, "stem, width: for the plain UNet alone"),
        ({"arch": "ternausnet11", "freeze": 0.5}, "give weights too"),
        ({"arch": "ternausnet11", "inflate": "repeat"}, "give weights too"),
        ({"encoder": "resnet18", "upsampling": "bilinear"}, "upsampling: for the plain UNet alone"),
        ({"arch": "ternausnet12"}, "arch"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        RunConfig.from_options(options)


def test_a_run_trains_saves_and_is_fine_tuned(thin, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "measure_halo", lambda network, *_, **__: network.stride)
    data, path = [squares(tmp_path)], tmp_path / "m.safetensors"
    options = {"chip": 32, "batch": 1, "rounds": 1, "steps": 2, "precision": "fp32", "device": "cpu"}
    trained = train(data, output=path, arch="ternausnet11", upsampling="bilinear", **options)
    assert trained.card.architecture.arguments["arch"] == "ternausnet11"
    merged = Start.load(path).options(RunConfig.from_options({"start": str(path), "freeze": 1.0, "steps": 1}))
    assert (merged.model.arch, merged.model.upsampling, merged.model.freeze) == ("ternausnet11", "bilinear", 1.0)
    again = train(data, start=path, freeze=1.0, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(
        trained.network.encoder.state_dict().values(), again.network.encoder.state_dict().values(), strict=True
    ))  # fmt: skip
