"""Index bands: which bands of a scene an index is computed from, in which unit, and its values.

An `IndexBand` is settled before a pixel is read: each role of the formula has found its band by wavelength (or was
told it), and all bands have been found to be in one unit. Indices are computed on the scene's grid, after resampling,
so that a window of one equals the crop of the whole.

What the values of a band are is told, in this order, by the file's own scale and offset, which have been applied to
them already, by the caller's scale, which is of raw counts, and by the sensor's document (its scale, else the bit
depth). A caller's scale for a band whose file has one is refused by name, and for all bands passes over it: one word
serves scenes of both kinds. Bands whose units differ are refused. DSTL's third place divided
two bands by 65535, unknowing, and not the third, and its threshold has meant something else ever since. An index in
which a factor does not cancel out is refused on bare counts too. Rejected: bringing bands to one unit by a guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from satseg.documents import suggest
from satseg.errors import BandError, UsageError
from satseg.formulas import Formula, Plane
from satseg.imagery.sources import BandSource
from satseg.indexes import IndexItem, IndexSpec
from satseg.sensors import BandSpec
from satseg.specs import index_spec

Scale: TypeAlias = "float | Mapping[str, float]"
"""Factor from counts to reflectance: of all bands, or of some by name."""
REFLECTANCE = "reflectance"
SHARE = "share of full scale"
FLOATS = "values as stored (float)"
CHUNK_PX = 2**15
"""Pixels computed at a time: the planes of a formula stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What values of a band are: ``value * scale + offset`` is in the unit called `name`."""

    name: str
    scale: float = 1.0
    offset: float = 0.0

    def __str__(self) -> str:
        factor = "" if self.scale == 1.0 else f" x {self.scale:.6g}"
        offset = "" if self.offset == 0.0 else f" {'-' if self.offset < 0 else '+'} {abs(self.offset):.6g}"
        return f"{self.name} (value{factor}{offset})" if factor or offset else self.name


@dataclass(frozen=True, slots=True)
class Candidate:
    """A band that a role may be found among.

    Parameters
    ----------
    name, dtype : str
    scaled : bool
        Whether the file's own scale or offset has been applied to its values.
    spec : BandSpec or None
        What the sensor's document says of it.
    """

    name: str
    dtype: str
    scaled: bool = False
    spec: BandSpec | None = None

    @classmethod
    def of(cls, source: BandSource) -> Candidate:
        """A band of a scene."""
        return cls(source.name, source.dtype, source.is_scaled, source.spec)

    def unit(self, scale: float | None = None) -> Unit:
        """Return what its values are; `scale` is the caller's word for the factor from counts to reflectance."""
        if self.scaled:
            return Unit(REFLECTANCE)
        if scale is not None:
            return Unit(REFLECTANCE, scale)
        kind = np.dtype(self.dtype)
        if kind.kind == "f":
            return Unit(FLOATS)
        full = None if self.spec is None or self.spec.bit_depth is None else 2**self.spec.bit_depth - 1
        if self.spec is not None and (full is None or np.iinfo(kind).max >= full):  # else a stretched copy
            if (self.spec.scale, self.spec.offset) != (1.0, 0.0):
                return Unit(REFLECTANCE, self.spec.scale, self.spec.offset)
            if full is not None:
                return Unit(SHARE, 1 / full)
        return Unit(f"values as stored ({kind})")


@dataclass(frozen=True, slots=True)
class IndexInput:
    """A role of a formula, the band that plays it, and what its values are; `said`: by the caller's scale."""

    role: str
    band: str
    unit: Unit
    said: bool = False


@dataclass(frozen=True, slots=True)
class IndexBand:
    """An index as a band: all that its values depend on. Made by `index_bands`; picklable.

    Parameters
    ----------
    item : IndexItem
    formula : Formula
    inputs : tuple of IndexInput
        One for each role of the formula, all in one unit.
    undefined : float or None
        The value where there is none (0/0); None: the pixel is not valid.
    """

    item: IndexItem
    formula: Formula
    inputs: tuple[IndexInput, ...]
    undefined: float | None = None

    @property
    def name(self) -> str:
        """Of the band: the index's."""
        return self.item.name

    @property
    def unit(self) -> str:
        """The unit that its inputs are in."""
        return self.inputs[0].unit.name

    def values(self, planes: Mapping[str, NDArray[Any]]) -> tuple[Plane, NDArray[np.bool_] | None]:
        """Return the index of `planes`, by band, of one float dtype, NaN where undefined, and where that is."""
        units = {one.unit for one in self.inputs}
        if self.formula.is_scale_free and len(units) == 1 and self.inputs[0].unit.offset == 0:
            given = {one.role: planes[one.band] for one in self.inputs}  # a common factor cancels out
        else:
            given = {one.role: _converted(planes[one.band], one.unit) for one in self.inputs}
        return self.formula.values(given)

    def told(self) -> str:
        """Return what it is computed from, for people."""
        roles = ", ".join(f"{one.role} = {one.band}" for one in self.inputs)
        units = " and ".join(dict.fromkeys(str(one.unit) for one in self.inputs))
        return f"{self.name}: {self.formula.text} with {roles}, in {units}"


def _converted(plane: NDArray[Any], unit: Unit) -> NDArray[Any]:
    scaled = plane if unit.scale == 1.0 else plane * unit.scale
    return scaled if unit.offset == 0.0 else scaled + unit.offset


def index_bands(
    names: Sequence[str],
    among: Sequence[Candidate],
    *,
    spec: IndexSpec | None = None,
    bands: Mapping[str, str] | None = None,
    scale: Scale | None = None,
    undefined: float | None = None,
) -> tuple[IndexBand, ...]:
    """Return the indices called `names` of the bands `among`.

    Parameters
    ----------
    spec : IndexSpec, optional
        Where indices are looked up; the shipped document when left out.
    bands : mapping, optional
        Bands by role, such as ``{"nir": "nir2"}``, where wavelengths are not to decide.
    scale : float or mapping of band to float, optional
        Factor from counts to reflectance, above 0, where files do not say, and the sensor does not or says wrong.
    undefined : float, optional
        Value of pixels where an index has none; when left out they are not valid.

    Raises
    ------
    UsageError
        No name at all (E-USE-080); a scale that is no number above 0 (E-USE-082).
    SpecError
        Unknown indices (E-SPEC-061).
    BandError
        No band for a role (E-BAND-301), bands in different units (E-BAND-302), bare counts where reflectance is
        needed (E-BAND-303), names that repeat or are no role's or band's (E-BAND-304), a scale for a band that
        its file has scaled already (E-BAND-307).
    """
    if not names:
        raise UsageError("no index is named", hint="give some, such as 'ndvi'", code="E-USE-080")
    chosen = spec or index_spec()
    items = [chosen.item(name) for name in names]
    _check_told(dict(bands or {}), chosen.role_names, among, "role")
    _check_scale(scale, among)
    found = []
    for item in items:
        formula = chosen.formula_of(item)
        places = {role: (bands or {}).get(role) or find_band(chosen, role, among, item.name) for role in formula.names}
        found.append(settled(item, formula, places, among, scale=scale, undefined=undefined))
    return tuple(found)


def _check_told(told: Mapping[str, str], known: Sequence[str], among: Sequence[Candidate], word: str) -> None:
    for name, band in told.items():
        if name not in known:
            raise BandError(f"{name!r} is no {word}{suggest(name, known)}", code="E-BAND-304")
        names = tuple(one.name for one in among)
        if band not in names:
            raise BandError(f"{word} {name!r} is to be {band!r}, and there are {names}", code="E-BAND-304")


def _check_scale(scale: Scale | None, among: Sequence[Candidate]) -> None:
    factors = scale if isinstance(scale, Mapping) else {} if scale is None else {"": scale}
    for name, factor in factors.items():
        if not (math.isfinite(factor) and factor > 0):
            raise UsageError(
                f"scale {factor}{f' of {name}' if name else ''} is no factor to reflectance",
                hint="give a number above 0, such as 1/10000",
                code="E-USE-082",
            )
    if not isinstance(scale, Mapping):
        return
    _check_told({name: name for name in scale}, tuple(band.name for band in among), among, "band")
    twice = next((band.name for band in among if band.scaled and band.name in scale), None)
    if twice is not None:
        raise BandError(
            f"the file of {twice} has a scale of its own, which its values have been multiplied by already",
            hint=f"leave the scale of {twice} out",
            code="E-BAND-307",
        )


def find_band(spec: IndexSpec, role: str, among: Sequence[Candidate], index: str) -> str:
    """Return the band `among` these that is of `role`: by wavelength where that is known, else by name.

    Raises
    ------
    BandError
        None is (E-BAND-301).
    """
    wanted = spec.role(role)
    near = [(wanted.distance_nm(one.spec), one.name) for one in among if one.spec is not None]
    distance, best = min(near, key=lambda pair: pair[0], default=(np.inf, ""))
    if distance < np.inf:
        return best
    unknown = {one.name for one in among if one.spec is None or one.spec.center_nm is None}
    by_name = next((name for name in (role, *wanted.names) if name in unknown), None)
    if by_name is None:
        names = tuple(one.name for one in among)
        raise BandError(
            f"{index} needs a band of {role} ({wanted.low_nm:g} to {wanted.high_nm:g} nm), and none of {names} is",
            hint=f"tell which: bands={{{role!r}: ...}} (--band-role {role}=...), or name the sensor",
            code="E-BAND-301",
        )
    return by_name


def settled(
    item: IndexItem,
    formula: Formula,
    places: Mapping[str, str],
    among: Sequence[Candidate],
    *,
    scale: Scale | None,
    undefined: float | None,
) -> IndexBand:
    """Return the index of the bands `places`, by role, once their units have been found to agree.

    Raises
    ------
    BandError
        As `index_bands`.
    """
    by_name = {one.name: one for one in among}
    absent = [f"{role} = {band}" for role, band in places.items() if band not in by_name]
    if absent:
        raise BandError(
            f"{item.name} needs {', '.join(absent)}, the scene has bands {tuple(by_name)}", code="E-BAND-301"
        )
    factor = scale.get if isinstance(scale, Mapping) else lambda _: scale
    inputs = tuple(
        IndexInput(role, band, by_name[band].unit(factor(band)), factor(band) is not None and not by_name[band].scaled)
        for role, band in places.items()
    )
    units = {one.unit.name for one in inputs}
    if len(units) > 1:
        said = ", ".join(f"{one.band} in {one.unit}" for one in inputs)
        raise BandError(
            f"{item.name} mixes units: {said}",
            hint="give scale= (--scale) for those that are not reflectance, such as {'red': 1 / 2047}",
            code="E-BAND-302",
        )
    unit = inputs[0].unit.name
    if not formula.is_scale_free and unit not in (REFLECTANCE, SHARE, FLOATS):
        raise BandError(
            f"{item.name} is of reflectance, and {inputs[0].band} holds {unit}",
            hint="give scale= (--scale), the factor to reflectance, such as 1/10000, or name the sensor",
            code="E-BAND-303",
        )
    return IndexBand(item, formula, inputs, undefined)


def add_indices(
    indices: Sequence[IndexBand], planes: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any]]
) -> NDArray[np.bool_] | None:
    """Write `indices` of `planes` and return where one of them is undefined, (H, W), None where none is.

    Parameters
    ----------
    indices : sequence of IndexBand
    planes : mapping of band to ndarray, (H, W)
        Of one float dtype, finite.
    out : mapping of index to ndarray, (H, W)
        Of that dtype; NaN afterwards where the index is undefined, if no other value stands for that, which
        is also what the result tells of.
    """
    height, width = next(iter(planes.values())).shape
    rows = max(1, CHUNK_PX // width)
    lost: NDArray[np.bool_] | None = None
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        given = {name: plane[part] for name, plane in planes.items()}
        for band in indices:
            values, undefined = band.values(given)
            out[band.name][part] = values
            if undefined is None:
                continue
            if band.undefined is not None:
                out[band.name][part][undefined] = band.undefined
            else:
                lost = np.zeros((height, width), bool) if lost is None else lost
                lost[part] |= undefined
    return lost
