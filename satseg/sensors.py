"""What a sensor spec says: bands with wavelengths, products with band orders, file names.

The band order of a file is never taken from its tags (the DSTL files' tags are wrong); it follows
from the file's name or from the number of bands, and where neither is certain the answer is None.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from satseg.documents import (
    Document,
    Place,
    Rows,
    Spec,
    Text,
    fault_at,
    folded,
    number_text,
    refuse_twice,
    suggest,
)
from satseg.errors import BandError


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("a band name has lower-case letters, digits and _ only")
    return name


BandName: TypeAlias = Annotated[str, AfterValidator(_plain_name)]
Nanometres: TypeAlias = Annotated[float, Field(gt=0)]
Metres: TypeAlias = Annotated[float, Field(gt=0)]
Bits: TypeAlias = Annotated[int, Field(ge=1, le=64)]

RASTER_SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".jp2", ".img", ".vrt", ".png", ".jpg")
INHERITED = ("gsd_m", "bit_depth", "scale", "offset")
"""Keys that a sensor may state once for all its bands."""


class BandSpec(Document):
    """A spectral band: where it looks (nm), how finely (m), and what its numbers mean.

    `reflectance = value * scale + offset`; 1 and 0 where the product defines none. `bit_depth` is
    that of the delivered values: the largest is ``2**bit_depth - 1``.
    """

    name: BandName
    low_nm: Nanometres | None = None
    center_nm: Nanometres | None = Field(None, description="the middle of low and high unless given")
    high_nm: Nanometres | None = None
    gsd_m: Metres | None = Field(None, description="ground sample distance at nadir")
    bit_depth: Bits | None = None
    scale: float = 1.0
    offset: float = 0.0
    aliases: tuple[Text, ...] = Field((), description='as in file names and metadata, such as "B02"')
    source: str | None = Field(None, description="where the figures differ from the document's source")

    @model_validator(mode="before")
    @classmethod
    def _center(cls, data: Any) -> Any:
        if isinstance(data, dict) and "center_nm" not in data:
            low, high = data.get("low_nm"), data.get("high_nm")
            if isinstance(low, int | float) and isinstance(high, int | float):
                return {**data, "center_nm": (low + high) / 2}
        return data

    @model_validator(mode="after")
    def _ordered(self) -> BandSpec:
        given = [edge for edge in (self.low_nm, self.center_nm, self.high_nm) if edge is not None]
        if any(first >= second for first, second in pairwise(given)):
            raise fault_at(("high_nm",), f"low_nm < center_nm < high_nm does not hold for {given}")
        return self


class ProductSpec(Document):
    """Bands in the order of a file that the provider or a data set delivers."""

    name: Text
    bands: Annotated[tuple[str, ...], Field(min_length=1)]
    source: str | None = None


class FilePattern(Document):
    """How a file name tells what the file holds.

    `regex` must match the whole name without its suffix, in any case. Either the file holds
    `product`, or a named group tells the band: group ``band`` is looked up among band names and
    aliases, any other group is itself named as the band.
    """

    regex: str
    product: str | None = None
    detect: bool = Field(True, description="false: too loose to tell the sensor by")


class SensorSpec(Spec):
    """A sensor, or a product of one: its bands, the orders they come in, and its file names."""

    kind: Literal["sensor"] = "sensor"
    gsd_m: Metres | None = None
    bit_depth: Bits | None = None
    scale: float = 1.0
    offset: float = 0.0
    nodata: Annotated[float, Field(allow_inf_nan=True)] | None = None
    bands: Annotated[tuple[BandSpec, ...], Field(min_length=1)]
    products: tuple[ProductSpec, ...] = Field((), description="the first is the default")
    files: tuple[FilePattern, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        """Hand the keys of `INHERITED` down to bands that lack them."""
        if not (isinstance(data, dict) and isinstance(data.get("bands"), list | tuple)):
            return data
        shared = {key: data[key] for key in INHERITED if key in data}
        return {**data, "bands": tuple({**shared, **b} if isinstance(b, dict) else b for b in data["bands"])}

    @model_validator(mode="after")
    def _consistent(self) -> SensorSpec:
        for index, band in enumerate(self.bands):
            for name in (band.name, *band.aliases):
                owner = next(other for other in self.bands if folded(name) in _keys(other))
                if owner is not band:
                    raise fault_at(("bands", index), f"band name or alias {name!r} is given twice")
        refuse_twice("products", [product.name for product in self.products])
        for index, product in enumerate(self.products):
            refuse_twice("products", product.bands, place=("products", index, "bands"))
            for name in product.bands:
                if name not in self.band_names:
                    known = suggest(name, self.band_names)
                    raise fault_at(("products", index, "bands"), f"unknown band {name!r}{known}")
        for index, pattern in enumerate(self.files):
            self._check_pattern(pattern, ("files", index))
        return self

    def _check_pattern(self, pattern: FilePattern, place: Place) -> None:
        try:
            groups = _compiled(pattern.regex).groupindex
            unnamed = _compiled(pattern.regex).groups - len(groups)
        except re.error as error:
            raise fault_at((*place, "regex"), f"regex {pattern.regex!r}: {error}") from error
        products = [product.name for product in self.products]
        if pattern.product is not None and pattern.product not in products:
            known = suggest(pattern.product, products)
            raise fault_at((*place, "product"), f"unknown product {pattern.product!r}{known}")
        if (pattern.product is None) == (not groups) or unnamed:
            raise fault_at((*place, "regex"), "a pattern has a product or named groups, and no other groups")
        for group in groups:
            if group not in ("band", *self.band_names):
                known = suggest(group, ["band", *self.band_names])
                raise fault_at((*place, "regex"), f"group {group!r} is no band{known}")

    @property
    def band_names(self) -> tuple[str, ...]:
        """All bands of the sensor, in the document's order."""
        return tuple(band.name for band in self.bands)

    def resolve(self, name: str) -> str | None:
        """Return the band called `name` here, by name or alias (``"B8A"``, ``"NIR-1"``), else None."""
        key = folded(name)
        return next((band.name for band in self.bands if key in _keys(band)), None) if key else None

    def band(self, name: str) -> BandSpec:
        """Return the band called `name`, by name or alias.

        Raises
        ------
        BandError
            There is none (E-BAND-010).
        """
        found = self.resolve(name)
        if found is None:
            known = suggest(name, self.band_names)
            raise BandError(f"{self.name or self.title} has no band {name!r}{known}", code="E-BAND-010")
        return next(band for band in self.bands if band.name == found)

    def order_for(self, count: int) -> tuple[str, ...] | None:
        """Return the bands of a file with `count` bands, in file order; None when that is not certain.

        Certain means one order of that size among the products, or the default product's.
        """
        orders = list(dict.fromkeys(item.bands for item in self.products if len(item.bands) == count))
        if len(orders) == 1 or (orders and orders[0] == self.products[0].bands):
            return orders[0]
        return None

    def match_file(self, filename: str) -> tuple[str, ...] | None:
        """Return the band(s) that the file holds by its name, else None.

        After the document's patterns, a name that ends with a band's name or alias (``x_nir1.tif``,
        ``red.tif``) counts, as this is asked only for files said to be of this sensor. Folders in
        `filename` are ignored. Quality bands (``BQA``, ``SCL``) match nothing.
        """
        stem = _raster_stem(filename)
        return None if stem is None else self._by_pattern(stem, self.files) or self._by_ending(stem)

    def recognizes(self, filename: str) -> bool:
        """Whether the name alone tells that the file is of this sensor."""
        stem = _raster_stem(filename)
        telling = [pattern for pattern in self.files if pattern.detect]
        return stem is not None and self._by_pattern(stem, telling) is not None

    def _by_pattern(self, stem: str, patterns: Iterable[FilePattern]) -> tuple[str, ...] | None:
        for pattern in patterns:
            found = _compiled(pattern.regex).fullmatch(stem)
            if found and pattern.product is not None:
                return next(product.bands for product in self.products if product.name == pattern.product)
            if found and found.lastgroup:
                name = self.resolve(found["band"]) if found.lastgroup == "band" else found.lastgroup
                if name is not None:
                    return (name,)
        return None

    def _by_ending(self, stem: str) -> tuple[str, ...] | None:
        stem = stem.lower()
        endings = [
            (len(name), band.name)
            for band in self.bands
            for name in (band.name, *band.aliases)
            if stem.endswith(name.lower()) and not stem[: -len(name)][-1:].isalnum()
        ]
        return (max(endings)[1],) if endings else None

    def rows(self) -> Rows:
        """Return one row for each band, after the header."""
        header = ("band", "aliases", "low nm", "center nm", "high nm", "GSD m", "bits")
        return header, *(
            (band.name, ", ".join(band.aliases), *map(number_text, figures))
            for band in self.bands
            for figures in [(band.low_nm, band.center_nm, band.high_nm, band.gsd_m, band.bit_depth)]
        )


@cache
def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex, re.IGNORECASE)


def _raster_stem(filename: str) -> str | None:
    """Return the name without folders and raster suffix; None for a file of another kind."""
    name = re.split(r"[/\\]", str(filename))[-1]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in RASTER_SUFFIXES else None


def _keys(band: BandSpec) -> set[str]:
    return {folded(name) for name in (band.name, *band.aliases)}


