"""Runtimes: whichever computes it, the mask is that of the network as it was trained."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from satseg.errors import DependencyError, UsageError
from satseg.learning.networks import runtimes
from satseg.learning.networks.export import onnx_bytes
from satseg.learning.networks.model import Model
from satseg.learning.networks.runtimes import ENGINES, OpenvinoRuntime, agreement, make_runtime
from tests.worlds import tiny_model

PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
exported = cache(onnx_bytes)
"""An export takes seconds; each model of these tests is exported once."""


@pytest.fixture(autouse=True)
def _export_once(monkeypatch):
    monkeypatch.setattr(runtimes, "onnx_bytes", exported)


def squares(seed: int, height: int = 96, width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised noise (1, 2, H, W) with squares that are bright in one band, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((1, 2, height, width), generator=generator) * 0.5
    mask = torch.zeros_like(image)
    for number in range(14):
        row, col = (int(torch.randint(0, size - 12, (), generator=generator)) for size in (height, width))
        mask[:, number % 2, row : row + 12, col : col + 12] = 1
    return image + 2 * mask, mask


@pytest.fixture(scope="module")
def model() -> Model:
    """A model trained for a moment, so that its masks look like masks."""
    made = tiny_model(width=8, stem=2, depth=3)
    nn.init.normal_(made.network.head.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(made.network.train().parameters(), lr=0.01)
    for step in range(50):
        image, mask = squares(step, 64, 64)
        loss = F.binary_cross_entropy_with_logits(made.network(image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.network.eval().requires_grad_(False)
    return made


def runtime_of(model: Model, engine: str, **options: object) -> runtimes.Runtime:
    for package in PACKAGES[engine]:
        pytest.importorskip(package)
    return make_runtime(model, engine=engine, **options)


def test_the_trained_model_finds_most_squares(model):
    image, mask = squares(100)
    assert ((model.network(image) > 0) == (mask > 0)).float().mean() > 0.95


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_logits_of_the_network_at_every_size(model, engine):
    runtime = runtime_of(model, engine)
    sizes = [(1, 96, 128), (1, 8, 8), (3, 8, 104), (1, 40, 8), (1, 96, 128)]
    for batch, height, width in sizes:
        image = torch.randn((batch, 2, height, width), generator=torch.Generator().manual_seed(height))
        before = image.clone()
        expected = model.network(image)
        for given in (image, image.contiguous(memory_format=torch.channels_last)):
            found = runtime(given)
            assert found.dtype == torch.float32
            assert not found.requires_grad
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-4
        assert torch.equal(image, before)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_masks_of_the_network(model, engine):
    images = [squares(seed)[0] for seed in range(200, 204)]
    assert agreement(model, images, runtime_of(model, engine)) >= 0.9999


def test_masks_are_compared_in_the_planes_of_classes_alone():
    model = tiny_model(separated=("b",))
    images = [torch.randn((1, 2, 16, 24), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert agreement(model, images, make_runtime(model)) == 1.0
    wrong = make_runtime(tiny_model(seed=1, separated=("b",)))
    assert 0.2 < agreement(model, images, wrong) < 0.8


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_bfloat16_gives_nearly_the_same_masks(model, engine):
    runtime = runtime_of(model, engine, amp=True)
    assert "bfloat16" in runtime.name
    images = [squares(seed)[0] for seed in range(200, 204)]
    assert agreement(model, images, runtime) >= 0.995
    assert runtime(images[0]).dtype == torch.float32


@pytest.mark.parametrize("engine", ENGINES)
def test_a_result_is_the_callers_alone_and_the_input_is_let_go(model, engine):
    runtime = runtime_of(model, engine)
    first, second = squares(1)[0], squares(2)[0]
    result = runtime(first)
    kept = result.clone()
    runtime(second)
    assert torch.equal(result, kept)
    watched = weakref.ref(first)
    del first
    gc.collect()
    assert watched() is None


def test_the_model_is_not_changed():
    model = tiny_model(stem=2)
    before, layers = copy.deepcopy(model.network.state_dict()), [type(layer) for layer in model.network.modules()]
    image = squares(0)[0]
    runtime = make_runtime(model, amp=True)
    result = runtime(image)
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert [type(layer) for layer in model.network.modules()] == layers
    with torch.no_grad():
        model.network.head.weight.add_(1)
    assert torch.equal(runtime(image), result)


@pytest.mark.parametrize("network", [{"crop": 4}, {"norm": "channel", "activation": "gelu", "upsampling": "bilinear"}])
def test_other_unets_run(network):
    model = tiny_model(**network)
    image = torch.randn((2, 2, 24, 36), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(make_runtime(model)(image), model.network(image).detach(), atol=1e-4, rtol=1e-4)


class Foreign(nn.Module):
    """Not our UNet: optional arguments and a residual on top."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        x = self.first(x)
        x = F.relu(self.second(x) + x)
        return self.last(x if shift is None else x + shift)


FOREIGN = replace(tiny_model(), network=Foreign().eval())


@pytest.mark.parametrize("engine", ENGINES)
def test_networks_of_others_run(engine):
    image = torch.randn((2, 2, 24, 36), generator=torch.Generator().manual_seed(0))
    found = runtime_of(FOREIGN, engine)(image)
    torch.testing.assert_close(found, FOREIGN.network(image).detach(), atol=1e-4, rtol=1e-4)


def test_thread_counts_and_gradients_are_left_alone(model):
    before = torch.get_num_threads(), torch.is_grad_enabled()
    make_runtime(model)(squares(0)[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before


def test_an_unknown_engine_is_refused_with_the_three(model):
    with pytest.raises(UsageError, match=r"'tensorrt'.*torch, onnx, openvino") as caught:
        make_runtime(model, engine="tensorrt")
    assert caught.value.code == "E-USE-070"


def test_what_an_engine_cannot_do_is_refused(model):
    with pytest.raises(UsageError, match="float32") as caught:
        make_runtime(model, engine="onnx", amp=True)
    assert caught.value.code == "E-USE-071"
    with pytest.raises(UsageError, match="not on cuda:0") as caught:
        make_runtime(model, engine="openvino", device=torch.device("cuda:0"))
    assert caught.value.code == "E-USE-072"


def test_onnxruntime_takes_the_gpu_asked_for_or_says_that_it_cannot():
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert runtimes._providers(torch.device("cpu"), both) == ["CPUExecutionProvider"]
    assert runtimes._providers(torch.device("cuda:1"), both)[0] == ("CUDAExecutionProvider", {"device_id": 1})
    with pytest.raises(DependencyError, match="onnxruntime-gpu") as caught:
        runtimes._providers(torch.device("cuda"), ["CPUExecutionProvider"])
    assert caught.value.code == "E-DEP-011"


@pytest.mark.parametrize(("engine", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(model, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=rf'{package}.*pip install "satseg\[{engine}\]"') as caught:
        make_runtime(model, engine=engine)
    assert (caught.value.exit_code, caught.value.code) == (6, "E-DEP-010")


def test_openvino_is_told_the_precision_and_the_threads(model):
    for amp, kind in ((False, "f32"), (True, "bf16")):
        runtime = runtime_of(model, "openvino", amp=amp)
        assert isinstance(runtime, OpenvinoRuntime)
        found = runtime._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        assert found == kind or amp  # a processor without bfloat16 computes in float32
        assert runtime._compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()


def test_agreement_counts_pixels_and_classes(model):
    image = squares(3)[0]

    class Opposite:
        device, name = torch.device("cpu"), "opposite"

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            logits = model.network(image)
            logits[:, 1] *= -1
            return logits

    assert agreement(model, [image], Opposite()) == 0.5
    assert agreement(model, [image, squares(4)[0]], make_runtime(model)) >= 0.9999
    assert agreement(model, [], Opposite()) == 1.0


def test_agreement_is_at_the_models_thresholds(model):
    strict = replace(model, card=model.card.model_copy(update={
        "classes": tuple(item.model_copy(update={"threshold": 0.999999}) for item in model.card.classes)
    }))  # fmt: skip

    class Warmer:
        device, name = torch.device("cpu"), "one logit more"

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            return model.network(image) + 1

    image = squares(5)[0]
    assert agreement(strict, [image], Warmer()) != agreement(model, [image], Warmer())
