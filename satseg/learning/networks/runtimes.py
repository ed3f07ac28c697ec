"""What computes a model's network: one small contract, and three ways to keep it.

A runtime takes normalised tiles and returns logits, nothing else; who reads, cuts and thresholds need
not know which it is. "torch" needs nothing else installed and computes the masks of the network as it
was trained, from fewer operations (`folding`). "openvino" was the fastest on an Intel Xeon and level with
it on an AMD EPYC (benchmarks/inference.py), "onnx" runs where neither suits; both get the graph from `export`.

bfloat16 means bfloat16 weights, not autocast, which converts every weight in every call for the same
masks. Rejected for the torch engine: torch.compile, for its first call costs most of a minute.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from satseg.errors import DependencyError, UsageError
from satseg.learning.machine import optional_package
from satseg.learning.networks.export import INPUT, OUTPUT, noise_for, onnx_bytes
from satseg.learning.networks.folding import lean, onednn_fuses
from satseg.learning.networks.model import Model

__all__ = ["Runtime", "ENGINES", "make_runtime", "agreement"]

ENGINES = ("torch", "onnx", "openvino")
ONLY_ERRORS = 3
"""ONNX Runtime's log level; on machines without a GPU it would warn that there is none."""


class Runtime(Protocol):
    """A network ready to compute.

    Attributes
    ----------
    device : torch.device
        Where its input and output are.
    name : str
        In a few words, for reports.
    """

    device: torch.device
    name: str

    def __call__(self, image: Tensor) -> Tensor:
        """Logits (B, K, H - 2 crop, W - 2 crop) float32 of `image` (B, C, H, W) float32, normalised.

        `image` is not changed and nothing of it is kept; the result is the caller's alone. The size may
        change from call to call.
        """


def make_runtime(
    model: Model, *, engine: str = "torch", amp: bool = False, device: torch.device | None = None
) -> Runtime:
    """Return what computes the network of `model`.

    Parameters
    ----------
    model : Model
        Not changed: weights are copied.
    engine : "torch", "onnx" or "openvino"
        The last two take some seconds to be made.
    amp : bool
        Compute in bfloat16; logits still come back in float32.
    device : torch.device, optional
        The model's own when left out.

    Raises
    ------
    UsageError
        An engine of another name (E-USE-070), onnx in bfloat16 (E-USE-071), openvino on a GPU (E-USE-072).
    DependencyError
        A package of the engine is not installed (E-DEP-010), or is without CUDA (E-DEP-011).
    """
    place = model.device if device is None else device
    if engine == "torch":
        return TorchRuntime(model, amp=amp, device=place)
    if engine == "onnx":
        if amp:
            raise UsageError(
                "engine 'onnx' computes in float32 alone", hint="leave amp out, or take torch", code="E-USE-071"
            )
        return OnnxRuntime(model, device=place)
    if engine == "openvino":
        return OpenvinoRuntime(model, amp=amp, device=place)
    raise UsageError(f"engine {engine!r} is not known", hint=f"give one of {', '.join(ENGINES)}", code="E-USE-070")


class TorchRuntime:
    """The network in torch: less of it, channels last; see `Runtime`.

    On a GPU nothing but normalisations is folded: what saves work on a processor was not measured there.
    """

    def __init__(self, model: Model, *, amp: bool, device: torch.device) -> None:
        self.device = device
        self.name = f"torch {_precision(amp)}"
        self._dtype = torch.bfloat16 if amp else torch.float32
        on_cpu = device.type == "cpu"
        source = copy.deepcopy(model.network).cpu()
        network = lean(source, onednn=on_cpu and onednn_fuses(self._dtype), join=on_cpu, sample=noise_for(model))
        self._network = network.to(device, self._dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Logits, as `Runtime` says; an input that is channels_last is not copied."""
        given = image.to(self._dtype).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self._network(given)
        return logits.float()


class OnnxRuntime:
    """The network in ONNX Runtime, float32; see `Runtime`.

    Its memory is given back after every call, and no plan of it is kept per size of tile. On a GPU
    the input and output go through the processor's memory.
    """

    def __init__(self, model: Model, *, device: torch.device) -> None:
        library = optional_package("onnxruntime", extra="onnx")
        self.device = device
        self.name = "onnxruntime float32"
        options = library.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_mem_pattern = False
        options.log_severity_level = ONLY_ERRORS
        providers = _providers(device, library.get_available_providers())
        self._session = library.InferenceSession(_graph(model), options, providers=providers)
        self._run_options = library.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, image: Tensor) -> Tensor:
        """Logits, as `Runtime` says; an input with one plane per band is not copied."""
        given = image.contiguous().cpu().numpy()
        (logits,) = self._session.run([OUTPUT], {INPUT: given}, self._run_options)
        return torch.from_numpy(logits).to(self.device)


_GRAPHS: WeakKeyDictionary[torch.nn.Module, tuple[tuple[int, ...], bytes]] = WeakKeyDictionary()


def _graph(model: Model) -> bytes:
    """The model's ONNX graph, exported once for all devices and scenes while its weights stay as they are."""
    state = tuple(weight._version for weight in model.network.state_dict().values())
    known = _GRAPHS.get(model.network)
    if known is None or known[0] != state:
        known = _GRAPHS[model.network] = state, onnx_bytes(model)
    return known[1]


def _providers(device: torch.device, available: list[str]) -> list[object]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    name = "CUDAExecutionProvider"
    if name not in available:
        raise DependencyError(
            f"this onnxruntime has no {name}", hint="pip install onnxruntime-gpu, or give device cpu", code="E-DEP-011"
        )
    return [(name, {"device_id": device.index or 0}), "CPUExecutionProvider"]


class OpenvinoRuntime:
    """The network in OpenVINO on the processor; see `Runtime`.

    The precision is always said, for OpenVINO takes bfloat16 unasked where the processor has it. A
    request lives for one call, so that its output is nobody else's. The first tile of a new size costs
    some tenths of a second.
    """

    def __init__(self, model: Model, *, amp: bool, device: torch.device) -> None:
        if device.type != "cpu":
            raise UsageError(
                f"engine 'openvino' computes on the CPU, not on {device}", hint="give device cpu", code="E-USE-072"
            )
        library = optional_package("openvino", extra="openvino")
        self.device = device
        self.name = f"openvino {_precision(amp)}"
        core = library.Core()
        self._tensor = library.Tensor
        self._compiled = core.compile_model(
            core.read_model(_graph(model)),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if amp else "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
            },
        )

    def __call__(self, image: Tensor) -> Tensor:
        """Logits, as `Runtime` says; an input with one plane per band is not copied."""
        given = image.contiguous().numpy()  # named, for OpenVINO's tensor does not keep it alive
        request = self._compiled.create_infer_request()
        request.set_input_tensor(self._tensor(given, shared_memory=True))
        request.infer()
        return torch.from_numpy(request.get_output_tensor().data)


def _precision(amp: bool) -> str:
    return "bfloat16" if amp else "float32"


def agreement(model: Model, images: Iterable[Tensor], runtime: Runtime) -> float:
    """Share, 0..1, of the pixels and classes whose mask by `runtime` is that of the network in float32.

    Parameters
    ----------
    model : Model
        Its network is run as it is, its thresholds make the masks; planes of cores, which have none, are left out.
    images : iterable of Tensor (B, C, H, W) float32
        Normalised. Of none, all agree.
    """
    levels = torch.tensor([*model.thresholds.values()], device=model.device).logit()[:, None, None]
    same = total = 0
    for image in images:
        with torch.inference_mode():
            expected = model.network(image.to(model.device))[:, : len(levels)] >= levels
        found = runtime(image.to(runtime.device)).to(model.device)[:, : len(levels)] >= levels
        same += int((expected == found).sum())
        total += expected.numel()
    return same / total if total else 1.0
