"""The compiled loop that packs pixels for the network, against the same in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from satseg.learning.networks.kernels import pack


@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2", ">i4", "<f4", ">f4", ">f8"])
@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 1, 1), (2, 0, 4)])
def test_pixels_of_any_dtype_and_byte_order_are_packed_alike(dtype, shape):
    rng = np.random.default_rng(0)
    data, valid = rng.integers(0, 250, shape).astype(dtype), rng.random(shape[1:]) < 0.8
    count = shape[0]
    bands = {"low": (10.0,) * count, "high": (200.0,) * count, "offset": (90.0,) * count, "scale": (40.0,) * count}
    out = np.full((*shape[1:], count), np.nan, np.float32)
    pack(data, valid, {name: np.array(row, np.float32) for name, row in bands.items()}, out)
    expected = np.where(valid, (data.astype(float).clip(10, 200) - 90) / 40, 0)
    np.testing.assert_allclose(out, np.moveaxis(expected, 0, -1), rtol=1e-6, atol=1e-6)
