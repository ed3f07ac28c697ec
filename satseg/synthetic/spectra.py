"""What ground covers reflect in the eight multispectral bands of WorldView-2 and WorldView-3.

Approximate surface reflectances, read off the general curves of the USGS Spectral Library
(Kokaly et al. 2017, version 7) and the ASTER/ECOSTRESS library (Meerdink et al. 2019) at the band
centres and rounded: good for scenes that behave like the real thing, not for retrieval. Whole
spectra were rejected: bands this wide see only their means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BANDS = ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir1", "nir2")
CENTRES_NM = (427.0, 478.0, 546.0, 608.0, 659.0, 724.0, 833.0, 949.0)
"""Band centres of WorldView-3 in nanometres (Maxar, WorldView-3 data sheet)."""
VISIBLE = slice(0, 5)
"""Bands that the eye could see; the other three lie beyond 700 nm."""

SKYLIGHT = np.array([0.46, 0.42, 0.35, 0.32, 0.30, 0.26, 0.22, 0.20], np.float32)
"""Share of the light that still reaches a shadow under a clear sky: the blue sky, little infrared."""
HAZE = np.array([0.060, 0.047, 0.029, 0.021, 0.016, 0.011, 0.007, 0.005], np.float32)
"""Path reflectance of a clear atmosphere: Rayleigh's fourth power of the wavelength plus some aerosol."""


@dataclass(frozen=True, slots=True)
class Material:
    """A ground cover.

    Parameters
    ----------
    reflectance : tuple of 8 floats in 0..1
        In the order of `BANDS`.
    grain, patch, broad : float
        Relative brightness variation (one sigma) from pixel to pixel, over metres, over tens of metres.
    """

    reflectance: tuple[float, ...]
    grain: float = 0.03
    patch: float = 0.03
    broad: float = 0.02


MATERIALS = {
    "grass": Material((0.038, 0.045, 0.081, 0.075, 0.063, 0.215, 0.385, 0.400), 0.08, 0.08, 0.06),
    "dry_grass": Material((0.056, 0.070, 0.112, 0.124, 0.124, 0.225, 0.320, 0.350), 0.08, 0.08, 0.06),
    "lawn": Material((0.036, 0.043, 0.088, 0.074, 0.058, 0.235, 0.425, 0.440), 0.05, 0.05, 0.03),
    "artificial_turf": Material((0.036, 0.043, 0.088, 0.074, 0.058, 0.070, 0.098, 0.115), 0.05, 0.05, 0.03),
    "reed": Material((0.032, 0.038, 0.058, 0.058, 0.050, 0.130, 0.220, 0.225), 0.14, 0.10, 0.04),
    "forest_floor": Material((0.024, 0.027, 0.042, 0.038, 0.032, 0.100, 0.200, 0.210), 0.12, 0.10, 0.04),
    "broadleaf": Material((0.029, 0.034, 0.062, 0.050, 0.040, 0.190, 0.405, 0.420), 0.10, 0.08, 0.03),
    "light_broadleaf": Material((0.033, 0.039, 0.075, 0.062, 0.049, 0.215, 0.440, 0.455), 0.10, 0.08, 0.03),
    "conifer": Material((0.024, 0.029, 0.047, 0.039, 0.033, 0.130, 0.270, 0.275), 0.11, 0.08, 0.03),
    "wheat": Material((0.036, 0.044, 0.084, 0.073, 0.058, 0.220, 0.440, 0.455), 0.04, 0.05, 0.05),
    "maize": Material((0.032, 0.039, 0.079, 0.063, 0.048, 0.205, 0.420, 0.430), 0.05, 0.05, 0.05),
    "beet": Material((0.037, 0.044, 0.098, 0.078, 0.057, 0.245, 0.480, 0.490), 0.05, 0.05, 0.05),
    "barley": Material((0.070, 0.088, 0.135, 0.162, 0.172, 0.250, 0.335, 0.375), 0.04, 0.05, 0.05),
    "stubble": Material((0.076, 0.095, 0.140, 0.170, 0.186, 0.240, 0.300, 0.340), 0.05, 0.06, 0.05),
    "soil": Material((0.066, 0.078, 0.103, 0.124, 0.138, 0.165, 0.205, 0.240), 0.06, 0.06, 0.06),
    "dirt": Material((0.098, 0.120, 0.168, 0.212, 0.236, 0.262, 0.300, 0.330), 0.05, 0.06, 0.04),
    "gravel": Material((0.135, 0.158, 0.192, 0.214, 0.226, 0.240, 0.252, 0.264), 0.06, 0.04, 0.03),
    "asphalt": Material((0.082, 0.090, 0.103, 0.111, 0.115, 0.120, 0.126, 0.134), 0.04, 0.05, 0.07),
    "concrete": Material((0.138, 0.156, 0.180, 0.193, 0.199, 0.208, 0.216, 0.224), 0.05, 0.04, 0.03),
    "paint": Material((0.42, 0.48, 0.52, 0.53, 0.53, 0.53, 0.53, 0.52), 0.04, 0.03, 0.0),
    "river": Material((0.050, 0.052, 0.060, 0.043, 0.030, 0.020, 0.012, 0.010), 0.03, 0.04, 0.04),
    "deep_water": Material((0.040, 0.040, 0.042, 0.027, 0.018, 0.011, 0.007, 0.006), 0.03, 0.04, 0.04),
    "pool": Material((0.24, 0.33, 0.36, 0.19, 0.085, 0.045, 0.022, 0.018), 0.04, 0.04, 0.0),
    "red_tile": Material((0.072, 0.080, 0.100, 0.150, 0.190, 0.215, 0.235, 0.250), 0.05, 0.04, 0.0),
    "orange_tile": Material((0.085, 0.097, 0.130, 0.195, 0.240, 0.265, 0.285, 0.300), 0.05, 0.04, 0.0),
    "brown_tile": Material((0.066, 0.072, 0.087, 0.106, 0.121, 0.138, 0.155, 0.167), 0.05, 0.04, 0.0),
    "slate": Material((0.072, 0.078, 0.084, 0.087, 0.088, 0.092, 0.098, 0.104), 0.05, 0.04, 0.0),
    "membrane": Material((0.38, 0.44, 0.48, 0.49, 0.49, 0.48, 0.46, 0.44), 0.03, 0.05, 0.02),
    "bitumen": Material((0.110, 0.118, 0.130, 0.138, 0.143, 0.150, 0.158, 0.166), 0.06, 0.08, 0.02),
    "zinc": Material((0.205, 0.235, 0.255, 0.256, 0.252, 0.250, 0.255, 0.250), 0.03, 0.03, 0.02),
    "solar_panel": Material((0.062, 0.064, 0.058, 0.050, 0.046, 0.048, 0.065, 0.090), 0.02, 0.02, 0.0),
    "white_car": Material((0.50, 0.58, 0.61, 0.61, 0.60, 0.58, 0.56, 0.54), 0.02, 0.02, 0.0),
    "silver_car": Material((0.30, 0.34, 0.36, 0.36, 0.36, 0.36, 0.36, 0.35), 0.02, 0.02, 0.0),
    "red_car": Material((0.060, 0.060, 0.065, 0.150, 0.280, 0.330, 0.345, 0.350), 0.02, 0.02, 0.0),
    "blue_car": Material((0.150, 0.190, 0.145, 0.090, 0.075, 0.095, 0.140, 0.150), 0.02, 0.02, 0.0),
    "black_car": Material((0.030, 0.030, 0.030, 0.030, 0.030, 0.030, 0.032, 0.034), 0.02, 0.02, 0.0),
    "dry_broadleaf": Material((0.034, 0.042, 0.070, 0.070, 0.064, 0.165, 0.300, 0.325), 0.10, 0.08, 0.03),
    "adobe": Material((0.105, 0.128, 0.175, 0.215, 0.238, 0.262, 0.295, 0.320), 0.05, 0.05, 0.0),
    "sand": Material((0.120, 0.150, 0.215, 0.270, 0.300, 0.330, 0.370, 0.400), 0.05, 0.06, 0.06),
    "turbid_water": Material((0.056, 0.064, 0.092, 0.082, 0.062, 0.050, 0.032, 0.022), 0.03, 0.04, 0.03),
    "glass": Material((0.045, 0.045, 0.042, 0.038, 0.035, 0.034, 0.032, 0.030), 0.02, 0.02, 0.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class BandSet:
    """Bands that a scene can be drawn in.

    Parameters
    ----------
    names : tuple of str
    curves : mapping of str to tuple of floats in 0..1
        Reflectance of every material of `MATERIALS`, in the order of `names`.
    skylight, haze : ndarray of float32, (bands,)
        As `SKYLIGHT` and `HAZE`.
    visible : int
        How many of the first bands the eye could see.
    """

    names: tuple[str, ...]
    curves: Mapping[str, tuple[float, ...]]
    skylight: NDArray[np.float32]
    haze: NDArray[np.float32]
    visible: int


VNIR = BandSet(
    names=BANDS,
    curves={name: material.reflectance for name, material in MATERIALS.items()},
    skylight=SKYLIGHT,
    haze=HAZE,
    visible=VISIBLE.stop,
)
"""The eight multispectral bands."""


def mixed_reflectance(
    material: str, *, dry: float = 0.0, shade: float = 1.0, bands: BandSet = VNIR
) -> NDArray[np.float32]:
    """Reflectance (bands,) float32 of a material mixed with a share `dry` of dry grass, times `shade`.

    Artificial turf is tinted like the lawn it imitates, in the visible bands only: dyes match the
    colour of grass, nothing matches the jump of its reflectance near 700 nm (the red edge).
    """
    own = np.array(bands.curves[material], np.float32)
    straw = np.array(bands.curves["dry_grass"], np.float32)
    tinted = (1 - dry) * own + dry * straw
    if material == "artificial_turf":
        tinted[bands.visible :] = own[bands.visible :]
    return np.asarray(tinted * shade, np.float32)
