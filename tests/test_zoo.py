"""Networks on encoders of segmentation-models-pytorch: used as our own are, started from weights, loaded offline."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

import satseg
from satseg.errors import BandError, DependencyError, GridError, ModelError, UsageError
from satseg.imagery.normalization import Normalization
from satseg.imagery.scene import open_scene
from satseg.learning.card import CHECKSUM, Architecture, BandCard, FileHash, ModelCard, canonical, checksum
from satseg.learning.detection.inference import chosen_halo
from satseg.learning.networks.architectures import (
    architecture_of,
    check_network,
    library_versions,
    new_network,
    saved_network,
)
from satseg.learning.networks.bundle import METADATA_KEY
from satseg.learning.networks.encoders import hold_encoder, parameter_groups
from satseg.learning.networks.export import export_onnx
from satseg.learning.networks.halo import measure_halo
from satseg.learning.networks.model import Model, load_model
from satseg.learning.networks.network import UNBOUNDED_HALO_PX
from satseg.learning.networks.unet import UNet
from satseg.learning.networks.zoo import ARCHITECTURES, ZooConfig, ZooNet
from satseg.options import ModelOptions
from satseg.pipeline import predict
from satseg.run import RunConfig
from satseg.specs import ClassItem
from tests.factories import noise, write_tiff
from tests.worlds import squares, tiny_model

smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra zoo")
torch.set_num_threads(1)
BANDS = ("red", "nir", "a", "b", "c", "d", "e", "f")
SMALL = "mobilenet_v2"
"""The encoder that costs least here."""


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def net(*, bands: int = 2, classes: int = 1, encoder: str = SMALL, arch: str = "linknet", **options) -> ZooNet:
    config = ZooConfig(bands=bands, classes=classes, arch=arch, encoder=encoder)
    return ZooNet(config, generator=seeded(), **options).eval()


def model_of(network: ZooNet, *, halo: int | None = None) -> Model:
    """A model whose scores are spread, so that equality means something."""
    with torch.no_grad():
        network.segmentation_head[0].weight.mul_(300)
    names = BANDS[: network.config.bands]
    count = len(names)
    card = ModelCard(
        architecture=architecture_of(network),
        bands=tuple(BandCard(name=name) for name in names),
        normalization=Normalization(names, (120.0,) * count, (60.0,) * count, (0.0,) * count, (2047.0,) * count),
        classes=tuple(ClassItem(name=f"c{i}", id=i + 1, color="#336699") for i in range(network.config.classes)),
        halo=network.halo if halo is None else halo,
        stride=network.stride,
        versions=library_versions(network),
    )
    return Model(card, network, torch.device("cpu"))


def scene_of(folder, *, bands: int = 2, height: int = 70, width: int = 90):
    path = write_tiff(folder / "s.tif", noise(bands, height, width), descriptions=BANDS[:bands])
    return open_scene(path)


@pytest.fixture(scope="module")
def model():
    return model_of(net())


# --- shapes, sizes, seeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_gives_one_plane_per_class_at_full_size(arch):
    network = net(bands=4, classes=3, arch=arch, prior=0.01)
    with torch.inference_mode():
        logits = network(torch.randn(1, 4, 64, 96, generator=seeded()))
    assert logits.shape == (1, 3, 64, 96)
    assert float(logits.sigmoid().mean()) == pytest.approx(0.01, abs=0.005)  # the prior, but for a head close to 0


@pytest.mark.parametrize("bands", [1, 3, 8])
def test_any_number_of_bands_is_taken_and_another_refused(bands):
    network = net(bands=bands)
    with torch.inference_mode():
        assert network(torch.zeros(1, bands, 32, 64)).shape == (1, 1, 32, 64)
    with pytest.raises(BandError, match=f"{bands} bands"):
        network(torch.zeros(1, bands + 1, 32, 64))
    with pytest.raises(GridError, match="pad to 64 x 64"):
        network(torch.zeros(1, bands, 33, 64))


def test_weights_are_a_function_of_the_seed_alone_and_leave_the_global_one():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again = net().state_dict(), net().state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    other = ZooNet(ZooConfig(bands=2, classes=1, arch="linknet", encoder=SMALL), generator=seeded(1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_it_computes_what_the_library_computes():
    network = net(bands=3, encoder="resnet18", arch="unet")
    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=1).eval()
    theirs.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=seeded())
    with torch.inference_mode():
        assert torch.equal(network(x), theirs(x))


# --- reach ---------------------------------------------------------------------------------------------------------


def test_nothing_beyond_the_reach_acts_and_something_within_does():
    network = net()
    reach, stride = network.reach, network.stride
    assert reach % stride == 0
    image = torch.randn(1, 2, 2 * reach + stride, stride, generator=seeded())
    far, near = image.clone(), image.clone()
    far[:, :, reach + stride :] += 3
    far[:, :, :0] += 3
    near[:, :, stride : 2 * stride] += 3
    with torch.inference_mode():
        rows, far_rows, near_rows = (network(x)[:, :, :stride] for x in (image, far, near))
    assert torch.equal(rows, far_rows)
    assert not torch.equal(rows, near_rows)


@pytest.mark.parametrize(
    ("arch", "encoder"), [("fpn", SMALL), ("deeplabv3plus", SMALL), ("manet", SMALL), ("unet", "efficientnet-b0")]
)
def test_a_reach_without_end_is_known_and_exact_refused(arch, encoder):
    network = net(arch=arch, encoder=encoder)
    assert network.reach is None
    assert network.halo == UNBOUNDED_HALO_PX
    model = model_of(network, halo=64)
    assert (chosen_halo(model, None), chosen_halo(model, 32)) == (64, 32)
    with pytest.raises(GridError, match="looks at all of a tile"):
        chosen_halo(model, "exact")
    assert "without end" in model.summary()


def test_a_finite_reach_is_exact_in_the_model(model):
    assert chosen_halo(model, "exact") == model.network.halo == model.network.reach


def test_tiles_equal_the_whole_scene(model, tmp_path):
    scene = scene_of(tmp_path, height=45, width=2 * model.network.halo + 130)
    whole = predict(model, scene, tile=2048, halo="exact").data
    assert np.ptp(whole) > 0.1
    assert np.abs(predict(model, scene, tile=64, halo="exact").data - whole).max() < 1e-5
    assert np.abs(predict(model, scene, tile=64, halo=0).data - whole).max() > 1e-3


def test_a_halo_is_measured_with_and_without_an_end(tmp_path):
    scene = scene_of(tmp_path, height=200, width=260)
    for network in (net(), net(arch="fpn")):
        found = measure_halo(network, model_of(network).card.normalization, [scene], pieces=1, tolerance=0.05)
        assert 0 <= found <= network.halo
        assert found % network.stride == 0


# --- model files ---------------------------------------------------------------------------------------------------


def test_a_saved_model_gives_equal_scores(model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device="cpu")
    assert isinstance(loaded.network, ZooNet)
    assert loaded.network.config == model.network.config
    assert loaded.card.versions["segmentation_models_pytorch"] == smp.__version__
    scene = scene_of(tmp_path)
    assert np.array_equal(predict(loaded, scene).data, predict(model, scene).data)
    assert "smp" in loaded._repr_html_()


def test_loading_asks_nothing_of_a_network_and_draws_nothing(model, tmp_path, monkeypatch):
    model.save(tmp_path / "m.safetensors")
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a network was asked"))
    before = torch.random.get_rng_state()
    load_model(tmp_path / "m.safetensors", device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": "resnet19"}, "did you mean 'resnet18'"),
        ({"arch": "segnet"}, "arch 'segnet' is not known"),
        ({"encoder": "resnext101_32x48d"}, "do not fit"),
        ({"classes": 4097}, "from 1 to 4096"),
        ({"width": 32}, "unexpected keyword"),
    ],
)
def test_a_card_that_asks_for_another_network_is_refused(model, change, said):
    arguments = {**architecture_of(model.network).arguments, **change}
    before = time.process_time()
    with pytest.raises((UsageError, RuntimeError, TypeError)) as caught:
        saved_network(Architecture(name="smp", arguments=arguments), model.network.state_dict())
    if said != "do not fit":
        assert said in str(caught.value)
    assert time.process_time() - before < 5  # no 800 million weights were drawn


def test_a_file_with_an_unknown_encoder_is_a_model_error(model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as stream:
        document = json.loads(stream.metadata()[METADATA_KEY])
    document["architecture"]["arguments"]["encoder"] = "resnet19"
    document[CHECKSUM] = checksum(document)
    weights = safetensors.torch.load_file(tmp_path / "m.safetensors")
    (tmp_path / "x.safetensors").write_bytes(safetensors.torch.save(weights, {METADATA_KEY: canonical(document)}))
    with pytest.raises(ModelError, match="resnet18") as caught:
        load_model(tmp_path / "x.safetensors", device="cpu")
    assert caught.value.code == "E-MOD-019"


def test_encoders_that_cannot_be_drafted_load_too():
    network = net(bands=4, arch="unet", encoder="mit_b0")
    loaded = saved_network(architecture_of(network), network.state_dict()).eval()
    x = torch.randn(1, 4, 32, 64, generator=seeded())
    with torch.inference_mode():
        assert torch.equal(loaded(x), network(x))


@pytest.mark.slow
def test_onnx_gives_the_same_logits(model, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    export_onnx(model, tmp_path / "m.onnx")
    session = runtime.InferenceSession((tmp_path / "m.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    for shape in ((1, 2, 64, 96), (3, 2, 32, 32)):
        x = torch.randn(shape, generator=seeded())
        with torch.inference_mode():
            expected = model.network(x).numpy()
        (found,) = session.run(None, {"image": x.numpy()})
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


# --- weights to start from -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rgb():
    """The encoder's weights for three bands, as somebody trained them."""
    return net(bands=3, encoder="resnet18").encoder.state_dict()


def saved_weights(folder, weights, *, kind: str = ".safetensors", prefix: str = "") -> str:
    path = folder / f"w{kind}"
    named = {prefix + name: value.clone() for name, value in weights.items()}
    if kind == ".safetensors":
        safetensors.torch.save_file(named, path)
    else:
        torch.save(named, path)
    return str(path)


@pytest.mark.parametrize("bands", [1, 2, 3, 8])
def test_the_first_layer_is_inflated_as_the_library_does(tmp_path, rgb, bands):
    network = net(bands=bands, encoder="resnet18", weights=saved_weights(tmp_path, rgb))
    theirs = smp.encoders.get_encoder("resnet18", in_channels=3, weights=None)
    theirs.load_state_dict(dict(rgb))
    theirs.set_in_channels(bands, pretrained=True)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(network.encoder.state_dict()[name], value, msg=name)  # a sum may differ by rounding


@pytest.mark.parametrize("kind", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_a_file_of_weights_is_read_whatever_its_form(tmp_path, rgb, kind, prefix):
    given = dict(rgb) | ({} if prefix else {"fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)})
    given = {name: value for name, value in given.items() if not name.endswith("num_batches_tracked")}
    path = saved_weights(tmp_path, given, kind=kind, prefix=prefix)
    network = net(bands=3, encoder="resnet18", weights=path)
    assert all(torch.equal(network.encoder.state_dict()[name], value) for name, value in rgb.items())


def test_weights_for_as_many_bands_are_taken_as_they_are(tmp_path):
    other = net(bands=5, encoder="resnet18")
    network = net(bands=5, encoder="resnet18", weights=saved_weights(tmp_path, other.state_dict()))
    assert torch.equal(network.encoder.conv1.weight, other.encoder.conv1.weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("layer1.0.conv1.weight"), "layer1.0.conv1.weight is missing"),
        (lambda w: w.update({"bonus": torch.zeros(1)}), "bonus is unknown"),
        (lambda w: w.update({"bn1.weight": torch.zeros(7)}), r"bn1.weight is \(7,\), not \(64,\)"),
        (lambda w: w.update({"conv1.weight": torch.zeros(64, 4, 7, 7)}), r"conv1.weight is \(64, 4, 7, 7\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, rgb, change, said):
    given = dict(rgb)
    change(given)
    with pytest.raises(ModelError, match=said) as caught:
        net(bands=8, encoder="resnet18", weights=saved_weights(tmp_path, given))
    assert caught.value.code == "E-MOD-021"


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file was run",))


@pytest.mark.parametrize("content", [b"", b"junk" * 99, {"a": Bomb()}, {"a": 1}, [torch.zeros(2)]])
@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_a_file_that_is_no_weights_is_refused_and_not_run(tmp_path, content, kind):
    path = tmp_path / f"w{kind}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError) as caught:
        net(encoder="resnet18", weights=str(path))
    assert caught.value.code == "E-MOD-020"


def test_weights_of_a_file_that_is_not_there_are_missing_and_no_bad_input(tmp_path):
    with pytest.raises(DependencyError, match="are no file") as caught:
        net(encoder="resnet18", weights=str(tmp_path / "w.pt"))
    assert (caught.value.code, caught.value.exit_code) == ("E-DEP-014", 6)


@contextmanager
def hub(monkeypatch, folder, **constants):
    """An empty cache of the hub, and what it thinks of the network."""
    known = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(known, "HF_HUB_CACHE", str(folder))
    for name, value in constants.items():
        monkeypatch.setattr(known, name, value)
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < 3.5


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"HF_HUB_OFFLINE": True}, "HF_HUB_OFFLINE is set"),
        ({"HF_HUB_OFFLINE": False, "ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1:9 does not answer"),
    ],
)
def test_published_weights_without_a_network_are_refused_at_once(monkeypatch, tmp_path, constants, said):
    with hub(monkeypatch, tmp_path, **constants), pytest.raises(DependencyError, match=said) as caught:
        net(encoder="resnet18", weights="imagenet")
    assert (caught.value.exit_code, caught.value.code) == (6, "E-DEP-012")
    assert "weights=FILE" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"encoder": "resnet43"}, UsageError),
        ({"encoder": "resnet18", "weights": "imagnet"}, UsageError),
        ({"encoder": "resnet18", "weights": "absent.pt"}, DependencyError),
        ({"encoder": "resnet18", "weights": "imagenet"}, DependencyError),
    ],
)
def test_names_and_weights_are_checked_without_building(monkeypatch, tmp_path, options, kind):
    monkeypatch.setattr(smp, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    with hub(monkeypatch, tmp_path, HF_HUB_OFFLINE=True), pytest.raises(kind):
        check_network(ModelOptions(**options))
    check_network(ModelOptions())
    check_network(ModelOptions(encoder="resnet18"))


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"http://127.0.0.1:{server.getsockname()[1]}"
        constants = {"HF_HUB_OFFLINE": False, "ENDPOINT": silent}
        with hub(monkeypatch, tmp_path, **constants), pytest.raises(DependencyError, match="does not answer"):
            net(encoder="resnet18", weights="imagenet")


def test_published_weights_are_found_in_the_cache(monkeypatch, tmp_path, rgb):
    known = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    place = tmp_path / f"models--{known['repo_id'].replace('/', '--')}" / "snapshots" / known["revision"]
    place.mkdir(parents=True)
    safetensors.torch.save_file({name: value.clone() for name, value in rgb.items()}, place / "model.safetensors")
    with hub(monkeypatch, tmp_path, HF_HUB_OFFLINE=True):
        network = net(bands=3, encoder="resnet18", weights="imagenet")
    assert torch.equal(network.encoder.conv1.weight, rgb["conv1.weight"])


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoder": "resnet43"}, "did you mean 'resnet34'"),
        ({"arch": "unet", "encoder": "resnet18", "weights": "imagnet"}, "did you mean 'imagenet'"),
        ({"arch": "deeplabv3plus", "encoder": "vgg11"}, "cannot stand on encoder 'vgg11'"),
        ({"bands": 0}, "bands=0"),
    ],
)
def test_names_that_are_not_known_are_refused_with_the_nearest(options, said):
    with pytest.raises(UsageError, match=said):
        net(**options)


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path, model):
    model.save(tmp_path / "m.safetensors")
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    for action in (net, lambda: load_model(tmp_path / "m.safetensors", device="cpu")):
        with pytest.raises(DependencyError, match=r'pip install "satseg\[zoo\]"') as caught:
            action()
        assert caught.value.exit_code == 6


def test_the_plain_unet_needs_no_library():
    code = (
        "import sys; sys.modules['segmentation_models_pytorch'] = None\n"
        "import torch\nfrom satseg.options import ModelOptions\n"
        "from satseg.learning.networks.architectures import new_network\n"
        "new_network(ModelOptions(width=2), bands=2, classes=1, prior=0.1, generator=torch.Generator())\n"
        "assert not {'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch": "fpn"}, "arch: for encoders alone"),
        ({"weights": "imagenet"}, "encoder='resnet34'"),
        ({"encoder": "resnet18", "width": 64, "stem": 4}, "stem, width: for the plain UNet"),
        ({"encoder": "resnet18", "freeze": 0.5}, "give weights too"),
        ({"encoder": "resnet18", "weights": "imagenet", "freeze": 1.5}, "less than or equal to 1"),
        ({"encoder": "resnet18", "encoder_rate": 0}, "greater than 0"),
        ({"encodr": "resnet18"}, "encoder"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        RunConfig.from_options(options)


def test_a_run_file_with_an_encoder_reads_back_and_anchors_its_weights(tmp_path):
    config = RunConfig.from_options({"encoder": "resnet18", "weights": "w.pt", "freeze": 0.25, "encoder_rate": 0.1})
    (tmp_path / "run.toml").write_text(config.to_toml(), encoding="utf-8")
    back = RunConfig.from_file(tmp_path / "run.toml")
    assert back.model == config.model.model_copy(update={"weights": str(tmp_path / "w.pt")})
    named = RunConfig.from_options({"encoder": "resnet18", "weights": "imagenet"})
    (tmp_path / "run.toml").write_text(named.to_toml(), encoding="utf-8")
    assert RunConfig.from_file(tmp_path / "run.toml").model.weights == "imagenet"


def test_options_choose_the_kind_of_network():
    said = {"bands": 2, "classes": 3, "prior": 0.1}
    plain = new_network(ModelOptions(width=2, depth=2), generator=seeded(), **said)
    other = new_network(ModelOptions(encoder=SMALL, arch="fpn"), generator=seeded(), **said)
    assert isinstance(plain, UNet)
    assert (plain.config.width, plain.config.classes) == (2, 3)
    assert isinstance(other, ZooNet)
    assert (other.config.arch, other.config.bands) == ("fpn", 2)


# --- learning rates and freezing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_groups_hold_every_weight_once_and_slow_down_towards_the_input(decay):
    network = net()
    groups = parameter_groups(network, ModelOptions(encoder=SMALL, encoder_rate=0.1, layer_decay=decay))
    held = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(held) == sorted(map(id, network.parameters()))
    factors = [group["factor"] for group in groups]
    assert factors[-2:] == [0.1, 1.0]
    assert factors[:-1] == sorted(factors[:-1])
    assert len(set(factors[:-1])) == (1 if decay == 1 else 4)
    first = next(network.encoder.parameters())
    assert first is groups[0]["params"][0]


def test_the_plain_unet_is_one_group():
    network = tiny_model().network
    (group,) = parameter_groups(network, ModelOptions())
    assert group["factor"] == 1
    assert list(map(id, group["params"])) == list(map(id, network.parameters()))
    hold_encoder(network, ModelOptions(), 0.0)
    assert all(weight.requires_grad for weight in network.parameters())


def step(network, optimizer):
    optimizer.zero_grad()
    network(torch.randn(2, 2, 64, 64, generator=seeded(7))).square().mean().backward()
    optimizer.step()


def test_an_encoder_stays_as_it_is_for_its_share_and_learns_thereafter():
    network, options = net().train(), SimpleNamespace(freeze=0.5, encoder_rate=1.0, layer_decay=1.0)
    optimizer = torch.optim.AdamW(parameter_groups(network, options), lr=0.01, weight_decay=0.1)
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def changed(part):
        return [n for n, v in network.state_dict().items() if n.startswith(part) and not torch.equal(v, state[n])]

    for share in (0.0, 0.4):
        hold_encoder(network, options, share)
        step(network, optimizer)
        network.eval().train()  # as a validation does
    assert not changed("encoder")
    assert changed("decoder")
    hold_encoder(network, SimpleNamespace(freeze=1.0), 1.0)
    assert not network.encoder.training
    hold_encoder(network, options, 0.5)
    assert network.encoder.training
    step(network, optimizer)
    weights = {name for name, _ in network.named_parameters() if name.startswith("encoder")}
    assert weights <= set(changed("encoder"))


# --- the whole chain -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_trains_saves_and_detects_with_an_encoder(tmp_path):
    data = [squares(tmp_path)]
    weights = saved_weights(tmp_path, net(bands=3).encoder.state_dict())
    options = {"chip": 32, "batch": 4, "rounds": 1, "steps": 2, "precision": "fp32", "device": "cpu"}
    zoo = {"encoder": SMALL, "arch": "linknet", "weights": weights, "freeze": 1.0}
    start = net(bands=2, weights=weights).encoder.state_dict()
    trained = satseg.train(data, output=tmp_path / "m.safetensors", **options, **zoo)
    assert trained.card.training.options["model"]["weights"] == "w.safetensors"
    assert trained.card.training.weights == FileHash.of(weights)
    held = trained.network.encoder.state_dict()
    assert all(torch.equal(held[name], value) for name, value in start.items())
    found = satseg.detect(tmp_path / "m.safetensors", data[0][0])
    assert set(found.columns) >= {"class_name", "score"}


def test_a_single_chip_at_a_time_is_refused(tmp_path):
    with pytest.raises(UsageError, match="batch=2"):
        satseg.train([squares(tmp_path)], encoder=SMALL, batch=1, steps=1, chip=32, device="cpu")
    with pytest.raises(UsageError, match="give 64"):
        satseg.train([squares(tmp_path)], encoder=SMALL, steps=1, chip=48, device="cpu")
