"""A model's network as ONNX, the format that other runtimes read.

The graph is that of the lean network (`folding`), so that no runtime has to find the same savings again: it takes
bands normalised as the card says (each scene by its own levels first, where it says so) and returns logits, for any
batch and any height and width that the network's stride divides. The model card travels in the file's metadata.
torch's exporter through torch.export is used. Rejected: the older one through tracing, which is deprecated, and
writing the graph by hand, which would know our UNet alone; the price is a few seconds at the start of a run.
"""

from __future__ import annotations

import copy
import os

import torch
from torch import Tensor

from satseg.learning.machine import optional_package
from satseg.learning.networks.folding import lean
from satseg.learning.networks.model import Model
from satseg.output import AtomicOutput, os_errors_as_output_errors

__all__ = ["export_onnx", "onnx_bytes", "noise_for", "INPUT", "OUTPUT", "OPSET"]

INPUT, OUTPUT = "image", "logits"
"""Names of the graph's input (batch, bands, rows, cols) and output (batch, classes, rows, cols), float32."""
OPSET = 18
"""Version of the ONNX operators; 18, of 2022, is the least that torch's exporter writes."""
METADATA_KEY = "satseg"
SMALLEST_SAMPLE_PX = 64


def export_onnx(model: Model, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the network of `model` as ONNX under `path`; its card is the metadata entry "satseg".

    Raises
    ------
    OutputError
        The file cannot be written.
    DependencyError
        As `onnx_bytes`.
    """
    with AtomicOutput(path, overwrite=overwrite) as out:
        content = onnx_bytes(model)
        with os_errors_as_output_errors(path):
            out.temporary.write_bytes(content)


def onnx_bytes(model: Model) -> bytes:
    """Return the network of `model` as the content of an ONNX file.

    Raises
    ------
    DependencyError
        onnx or onnxscript is not installed (E-DEP-010).
    """
    for name in ("onnx", "onnxscript"):
        optional_package(name, extra="onnx")
    sample = noise_for(model, batch=2)
    network = lean(copy.deepcopy(model.network).cpu(), sample=sample)
    with torch.no_grad():
        program = torch.onnx.export(
            network, (sample,), input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch"), 2: _side(model, "rows"), 3: _side(model, "cols")},),
            verbose=False,
        )  # fmt: skip
    if program is None:
        raise AssertionError("the exporter was not asked to write a file, and returned none")
    document = program.model_proto
    entry = document.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, model.card.to_json()
    content: bytes = document.SerializeToString()
    return content


def noise_for(model: Model, *, batch: int = 1) -> Tensor:
    """Noise (batch, C, H, W) float32 on the CPU, of a small size that the network accepts, wider than high."""
    side = _least(model, SMALLEST_SAMPLE_PX) * model.stride
    generator = torch.Generator().manual_seed(0)
    return torch.randn((batch, len(model.bands), side, side + model.stride), generator=generator)


def _side(model: Model, name: str) -> object:
    """What torch.export is told about rows and columns: any multiple of the stride that is not all cropped."""
    steps = torch.export.Dim(name, min=_least(model, 1))
    return steps if model.stride == 1 else model.stride * steps


def _least(model: Model, size: int) -> int:
    """Strides that make `size` pixels and leave at least one after the crop."""
    crop = model.card.architecture.arguments.get("crop", 0)
    return -(-max(size, 2 * int(crop) + 1) // model.stride)
