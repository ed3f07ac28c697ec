"""Names for the bands of a scene: from the caller, the files, or the sensor, in that order.

Inside satseg bands are known by name only, so this is where a wrong order of bands would slip in. Each file
is named by the first of these that can name it: the caller's map; its band descriptions (under the sensor's
own names where they are its aliases); the sensor's file-name pattern; the order of bands that a sensor given
by the caller has; its colour interpretation; b1, b2, ….
Colour interpretation stands behind the given sensor because GDAL writes red, green, blue into files of
which nobody said so, and only counts when every band of the file has one. How the names were found is kept
in words, for `satseg info`.

An alpha band marks validity. It is imagery when the caller or the sensor names that many bands or it has a
description of its own: four-band 8-bit files are written as RGBA by default, whatever the fourth band is.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from satseg.errors import BandError
from satseg.imagery.sources import BandSource, SourceFile
from satseg.specs import SensorSpec, detect_sensor

PathLike: TypeAlias = str | os.PathLike[str]
BandPlace: TypeAlias = int | PathLike | tuple[PathLike, int]
BandMap: TypeAlias = Sequence[str] | Mapping[str, BandPlace]
Names: TypeAlias = tuple[str, ...]
RGB_NAMES = {"red": "red", "green": "green", "blue": "blue", "nir": "nir", "gray": "", "undefined": ""}
UNTOLD = re.compile(r"(band|layer|channel|raster|b|image)?[ _.-]*\d*")
"""Descriptions that only count the bands; any sensor knows better."""


@dataclass(frozen=True, slots=True)
class Naming:
    """The bands of a scene and how they came by their names."""

    bands: tuple[BandSource, ...]
    sensor: str | None
    how: str
    warnings: tuple[str, ...]


def name_bands(
    files: Sequence[SourceFile], *, bands: BandMap | None, sensor: SensorSpec | None, resampling: str
) -> Naming:
    """Return all bands of `files`, named.

    Parameters
    ----------
    bands : optional
        The caller's map: names in file order, or name -> 1-based band (one file), or name -> path or
        (path, 1-based band).
    sensor : optional
        As the caller gave it; recognised by the file names when left out.
    resampling : str
        The method for bands whose pixels are not the scene's; classes take "nearest" under "auto".

    Raises
    ------
    BandError
        The map does not fit the files (E-BAND-103), or two bands would have one name (E-BAND-102).
    """
    spec = sensor or _recognise(files)
    if bands is not None:
        chosen = _by_map(files, bands) if isinstance(bands, Mapping) else _by_list(files, bands)
        how, warnings = "by the caller", []
    else:
        settled = [_settle_alpha(file, sensor, spec) for file in files]
        chosen, how = _by_files(settled, sensor, spec)
        pairs = zip(files, settled, strict=True)
        warnings = [text for before, after in pairs for text in _said(before, after)]
    _refuse_repeats(chosen)
    sources = tuple(_source(name, file, index, resampling, spec) for name, file, index in chosen)
    return Naming(sources, spec.name if spec else None, how, tuple(warnings))


Choice: TypeAlias = tuple[str, SourceFile, int]


def _source(name: str, file: SourceFile, index: int, resampling: str, sensor: SensorSpec | None) -> BandSource:
    coded = file.coded[index - 1] and resampling == "auto"
    known = (band for band in (sensor.bands if sensor else ()) if band.name == name)  # "b1" is no alias but a number
    return BandSource(name, file, index, "nearest" if coded else resampling, next(known, None))


def _recognise(files: Sequence[SourceFile]) -> SensorSpec | None:
    """Return the one sensor that the file names tell; files no sensor knows (quality bands) have no say."""
    found = {spec.name: spec for file in files if (spec := detect_sensor([os.path.basename(file.path)]))}
    return next(iter(found.values())) if len(found) == 1 else None


# --- the caller's word ----------------------------------------------------------------------------


def _by_list(files: Sequence[SourceFile], names: Sequence[str]) -> list[Choice]:
    """Name bands by the caller's list, as long as all bands, or as all but the alpha bands."""
    names = [names] if isinstance(names, str) else list(names)
    full = [replace(file, alpha=None) for file in files]
    for candidate in (full, files):
        places = [(file, index) for file in candidate for index in file.imagery]
        if len(places) == len(names):
            return [(name, *place) for name, place in zip(names, places, strict=True)]
    count = sum(file.count for file in files)
    raise BandError(
        f"{len(names)} names {tuple(names)} for {count} bands",
        code="E-BAND-103",
        hint="give one name per band in file order, or a mapping from name to band number",
    )


def _by_map(files: Sequence[SourceFile], places: Mapping[str, BandPlace]) -> list[Choice]:
    named = {name: _place_of(files, name, place) for name, place in places.items()}
    used = {(file.path, index) for file, index in named.values()}
    keep = [file if (file.path, file.alpha) not in used else replace(file, alpha=None) for file in files]
    by_path = {file.path: file for file in keep}
    return [(name, by_path[file.path], index) for name, (file, index) in named.items()]


def _place_of(files: Sequence[SourceFile], name: str, place: BandPlace) -> tuple[SourceFile, int]:
    if isinstance(place, int):
        if len(files) > 1:
            raise BandError(
                f"band {name!r} is number {place} of which file? there are {len(files)}",
                code="E-BAND-103",
                hint="give (path, number)",
            )
        file, index = files[0], place
    else:
        path, index = place if isinstance(place, tuple) else (place, 1)
        file = _file_of(files, os.fspath(path))
    if not 1 <= index <= file.count:
        raise BandError(
            f"band {name!r} is number {index}; {file.path} has 1 to {file.count}", code="E-BAND-104"
        )
    return file, index


def _file_of(files: Sequence[SourceFile], path: str) -> SourceFile:
    """Return the file given as `path`, or the only one of that file name."""
    exact = [file for file in files if file.path == path]
    found = exact or [file for file in files if os.path.basename(file.path) == path]
    if len(found) != 1:
        known = tuple(os.path.basename(file.path) for file in files)
        raise BandError(f"{path!r} is not one of the scene's files {known}", code="E-BAND-103")
    return found[0]


# --- the files' and the sensor's word -------------------------------------------------------------


def _settle_alpha(file: SourceFile, given: SensorSpec | None, spec: SensorSpec | None) -> SourceFile:
    """Return `file` with its alpha band kept as validity, or turned into imagery."""
    if file.alpha is None:
        return file
    described = file.descriptions[file.alpha - 1] not in ("", "alpha")
    pattern = spec.match_file(file.path) if spec else None
    in_pattern = pattern is not None and len(pattern) == file.count
    in_order = given is not None and given.order_for(file.count) is not None
    return replace(file, alpha=None) if described or in_pattern or in_order else file


def _said(before: SourceFile, after: SourceFile) -> list[str]:
    if before.alpha is None:
        return []
    if after.alpha is None:
        return [f"{before.path}: band {before.alpha} is declared alpha and taken as imagery"]
    hint = "; if it is imagery, name it by bands or sensor" if before.count == 4 else ""
    return [f"{before.path}: band {before.alpha} is declared alpha and taken as validity{hint}"]


def _by_files(
    files: Sequence[SourceFile], given: SensorSpec | None, spec: SensorSpec | None
) -> tuple[list[Choice], str]:
    described = [_described(file, spec) for file in files]
    coloured = [_coloured(file) for file in files]
    taken = {name for file in files for name in _patterned(file, spec) or ()}
    ways: list[tuple[str, Callable[[int], Names | None]]] = [
        ("by band descriptions", lambda i: _distinct(described, i)),
        (f"by file name as {spec.name if spec else ''}", lambda i: _patterned(files[i], spec)),
        (f"by the band order of {given.name if given else ''}", lambda i: _ordered(files[i], given, taken)),
        ("by colour interpretation", lambda i: _distinct(coloured, i)),
    ]
    chosen: list[Choice] = []
    used: list[str] = []
    for number, file in enumerate(files):
        found = ((how, names) for how, way in ways if (names := way(number)) is not None)
        first = len(chosen) + 1
        numbered = tuple(f"b{n}" for n in range(first, first + len(file.imagery)))
        how, names = next(found, ("by number", numbered))
        chosen += [(name, file, index) for name, index in zip(names, file.imagery, strict=True)]
        used += [how] if how not in used else []
    return chosen, ", ".join(used)


def _described(file: SourceFile, spec: SensorSpec | None) -> Names | None:
    """Return band descriptions as names (the sensor's for its aliases); None if they tell none."""
    texts = tuple(file.descriptions[index - 1] for index in file.imagery)
    if not all(texts) or len(set(texts)) < len(texts):
        return None
    known = tuple((spec.resolve(text) if spec else None) or text for text in texts)
    told = any(name != text for name, text in zip(known, texts, strict=True))
    if not told and spec is not None and all(_is_untold(text, file.path) for text in texts):
        return None
    return known if len(set(known)) == len(known) else texts


def _is_untold(text: str, path: str) -> bool:
    """Return whether a description says nothing of the band: a number, or the file's own name."""
    stem = os.path.splitext(os.path.basename(path))[0].lower()
    return UNTOLD.fullmatch(text) is not None or text == stem


def _coloured(file: SourceFile) -> Names | None:
    """Return colour names, when every band that is imagery has one of its own."""
    names = tuple(RGB_NAMES.get(file.colours[index - 1], "") for index in file.imagery)
    return names if all(names) and len(set(names)) == len(names) else None


def _distinct(names: Sequence[Names | None], number: int) -> Names | None:
    """Return the names of file `number`, unless another file has one of them too."""
    counts = Counter(name for own in names for name in own or ())
    own = names[number]
    return own if own is not None and all(counts[name] == 1 for name in own) else None


def _patterned(file: SourceFile, spec: SensorSpec | None) -> Names | None:
    names = spec.match_file(os.path.basename(file.path)) if spec else None
    return names if names is not None and len(names) == len(file.imagery) else None


def _ordered(file: SourceFile, spec: SensorSpec | None, taken: set[str]) -> Names | None:
    """Return the sensor's order, unless other files have those bands by name (a mask beside its bands)."""
    names = spec.order_for(len(file.imagery)) if spec else None
    return names if names is not None and taken.isdisjoint(names) else None


def _refuse_repeats(chosen: Sequence[Choice]) -> None:
    if not chosen:
        raise BandError("the map names no band", hint="name at least one", code="E-BAND-103")
    names = [name for name, _, _ in chosen]
    for name, count in Counter(names).items():
        if not name.strip():
            raise BandError("a band has an empty name", code="E-BAND-103")
        if count > 1:
            places = ", ".join(f"{file.path} band {index}" for own, file, index in chosen if own == name)
            raise BandError(
                f"{count} bands are called {name!r}: {places}",
                code="E-BAND-102",
                hint="open them as several scenes, or name the bands with bands=",
            )
