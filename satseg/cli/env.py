"""`satseg env`: what this installation consists of and whether it is healthy."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import click

from satseg.cli.common import json_option, print_json

PACKAGES = ("numpy", "rasterio", "shapely", "geopandas", "pyogrio", "pyproj", "torch", "lightning", "safetensors")


@click.command("env")
@json_option
def command(as_json: bool) -> None:
    """Versions, both GDALs, PROJ health and devices."""
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name:<20} {value}")


def _facts() -> dict[str, Any]:
    import pyogrio
    import pyproj
    import rasterio
    import torch

    from satseg import __version__
    from satseg.crs import proj_data_problem

    facts: dict[str, Any] = {"satseg": __version__, "python": platform.python_version()}
    facts["system"] = platform.platform()
    facts |= {name: importlib.metadata.version(name) for name in PACKAGES}
    facts["GDAL of rasterio"] = rasterio.__gdal_version__
    facts["GDAL of pyogrio"] = ".".join(map(str, pyogrio.__gdal_version__))
    facts["PROJ of pyproj"] = pyproj.proj_version_str
    facts["PROJ data"] = proj_data_problem() or "ok"
    facts["cpu threads"] = torch.get_num_threads()
    facts["cpu bf16"] = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    facts["cuda devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts
