"""Pairs: which prediction belongs to which truth, area of interest and scene.

One of each is one pair. Folders are paired by file stem, mappings by key, sequences by position. A
truth without its prediction is an error, since leaving it out would flatter the score; a prediction
without truth cannot be scored and is only mentioned.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from satseg.errors import InputError, UsageError
from satseg.imagery.scene import Scene
from satseg.scoring.layers import RASTER_SUFFIXES, Layer, LayerLike, read_layer
from satseg.scoring.places import AoiLike, Place, SceneLike, find_place

LayerSource: TypeAlias = "LayerLike | Mapping[str, LayerLike] | Sequence[LayerLike]"
AoiSource: TypeAlias = "AoiLike | Mapping[str, AoiLike] | Sequence[AoiLike] | None"
SceneSource: TypeAlias = "SceneLike | Mapping[str, SceneLike] | Sequence[SceneLike] | None"

VECTOR_SUFFIXES = (".gpkg", ".shp", ".geojson", ".fgb", ".parquet", ".csv")
"""Main files of vector layers in a folder; not .json, which is as often a report."""
SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A prediction and the truth of one scene, read."""

    name: str
    pred: Layer
    truth: Layer
    place: Place

    def with_pred(self, pred: Layer) -> Pair:
        """Return this pair with another prediction."""
        return replace(self, pred=pred)

    def with_truth(self, truth: Layer) -> Pair:
        """Return this pair with another truth."""
        return replace(self, truth=truth)


def read_pairs(
    pred: LayerSource,
    truth: LayerSource,
    *,
    aoi: AoiSource = None,
    scene: SceneSource = None,
    fields: tuple[str | None, str | None] = (None, None),
) -> tuple[list[Pair], list[str]]:
    """Read every pair of prediction and truth.

    Parameters
    ----------
    pred, truth, aoi, scene
        As in `satseg.scoring.score.score`.
    fields : (str or None, str or None)
        The class attribute of predictions and of truths.

    Returns
    -------
    pairs, notes
        In the order of the truth, and what was left out.

    Raises
    ------
    InputError
        A truth has no prediction, or two files of a folder have one stem.
    UsageError
        Sequences differ in length, or only one side is several.
    """
    matched, notes = _matched(_several(pred), _several(truth))
    names = list(matched)
    aois, scenes = _spread(aoi, names, "areas of interest"), _spread(scene, names, "scenes")
    pairs = [
        Pair(
            name,
            read_layer(found, field=fields[0], role="prediction"),
            read_layer(real, field=fields[1], role="truth"),
            find_place(aois[name], scenes[name]),
        )
        for name, (found, real) in matched.items()
    ]
    notes.extend(note for pair in pairs if (note := _unknown_field(pair, fields)))
    if len(pairs) == 1 and isinstance(pairs[0].place.image, Scene):
        pairs = [replace(pairs[0], name=pairs[0].place.image.name)]
    return pairs, notes


def _unknown_field(pair: Pair, fields: tuple[str | None, str | None]) -> str | None:
    """Say so when neither layer has the attribute asked for, so that both were read by ``class_name``."""
    sides = zip((pair.pred, pair.truth), fields, strict=True)
    asked = [(layer, field) for layer, field in sides if field is not None and layer.field and len(layer.polygons)]
    if not asked or any(layer.field == field for layer, field in asked):
        return None
    return f"{pair.name}: neither prediction nor truth has an attribute {asked[-1][1]!r}; class_name is taken"


def _several(source: Any) -> dict[str, Any] | list[Any]:
    """Several things by name or by position; one thing is a list of one."""
    if isinstance(source, Mapping):
        return {str(name): thing for name, thing in source.items()}
    if isinstance(source, list | tuple):
        return list(source)
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return _folder(Path(source))
    return [source]


def _folder(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (*VECTOR_SUFFIXES, *RASTER_SUFFIXES):
            if path.stem in files:
                raise InputError(
                    f"{folder} has both {files[path.stem].name} and {path.name}",
                    hint="keep one file per scene, or give a mapping", code="E-IN-060", path=folder,
                )  # fmt: skip
            files[path.stem] = path
    if not files:
        raise InputError(f"{folder} has no vector files and no masks", code="E-IN-061", path=folder)
    return files


def _matched(
    preds: dict[str, Any] | list[Any], truths: dict[str, Any] | list[Any]
) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Prediction and truth by the name of their scene, and notes about predictions left over."""
    if not isinstance(preds, dict) or not isinstance(truths, dict):
        if len(preds) != len(truths):
            raise UsageError(
                f"{len(preds)} predictions and {len(truths)} truths make no pairs",
                hint="give folders with the same file stems, or sequences of one length", code="E-USE-063",
            )  # fmt: skip
        found, real = (list(side.values()) if isinstance(side, dict) else side for side in (preds, truths))
        return dict(zip(_titles(real, found), zip(found, real, strict=True), strict=True)), []
    missing = [name for name in truths if name not in preds]
    if missing:
        raise InputError(
            f"no prediction for {_some(missing)}; there are predictions for {_some(list(preds))}",
            hint="names must be the same on both sides", code="E-IN-062",
        )  # fmt: skip
    extra = [name for name in preds if name not in truths]
    notes = [f"no truth for {_some(extra)}, which are not scored"] if extra else []
    return {name: (preds[name], truths[name]) for name in truths}, notes


def _titles(truths: list[Any], preds: list[Any]) -> list[str]:
    """Names of scenes paired by position: the files' stems where these tell them apart."""
    for side in (truths, preds):
        stems = [Path(thing).stem for thing in side if isinstance(thing, str | os.PathLike)]
        if stems and len(set(stems)) == len(side):
            return stems
    return ["scene"] if len(truths) == 1 else [f"scene {number}" for number in range(1, len(truths) + 1)]


def _spread(source: Any, names: list[str], role: str) -> dict[str, Any]:
    """One of `source` for each name: its own where there are several, else the one there is."""
    several = _several(source)
    if isinstance(several, dict):
        missing = [name for name in names if name not in several]
        if missing:
            fault = f"no {role} for {_some(missing)}"
            raise UsageError(fault, hint="name them like the truth", code="E-USE-064")
        return {name: several[name] for name in names}
    if len(several) not in (1, len(names)):
        raise UsageError(
            f"{len(several)} {role} for {len(names)} pairs",
            hint="give one for each, or one for all (one scene in several files: open_scene them first)",
            code="E-USE-064",
        )
    return dict(zip(names, several * (len(names) if len(several) == 1 else 1), strict=True))


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(map(repr, names[:SHOWN_NAMES])) + (f" and {more} more" if more > 0 else "")
