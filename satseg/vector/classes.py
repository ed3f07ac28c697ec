"""Which class each feature of a file is of, by an attribute or by what the caller knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geopandas
import numpy as np
import pandas
from numpy.typing import NDArray

from satseg.documents import suggest
from satseg.errors import LabelError
from satseg.imagery.labels import CLASS_FIELD, SINGLE_CLASS, class_labels
from satseg.vector.formats import PathLike


def classes_of(
    table: geopandas.GeoDataFrame, field: str | None, classes: Sequence[str] | None, path: PathLike
) -> NDArray[np.object_]:
    """Return the class name of each row, None where it has none."""
    columns = [str(name) for name in table.columns if name != table.geometry.name]
    if field is None and CLASS_FIELD not in columns:
        if classes is not None and len(classes) > 1:
            raise LabelError(
                f"no attribute says which of {list(classes)} a feature is; there are {columns}",
                hint="name one with --field",
                code="E-LAB-211",
                path=path,
            )
        return np.full(len(table), classes[0] if classes else SINGLE_CLASS, dtype=object)
    field = field or CLASS_FIELD
    if field not in columns:
        raise LabelError(f"no attribute {field!r}{suggest(field, columns)}", code="E-LAB-211", path=path)
    return class_labels(table[field])


def with_classes(
    table: geopandas.GeoDataFrame,
    names: NDArray[np.object_],
    classes: Sequence[str] | None,
    *,
    own: bool,
) -> geopandas.GeoDataFrame:
    """Return `table` with class_id and class_name first; a file of our own keeps its numbers."""
    order = sorted({name for name in names if name is not None}) if classes is None else list(classes)
    numbers = {name: number for number, name in enumerate(order, start=1)}
    ids: Any = [numbers.get(name, 0) for name in names]
    numbered = "class_id" in table and pandas.api.types.is_integer_dtype(table["class_id"])
    if own and classes is None and numbered:
        ids = table["class_id"].to_numpy()
    rest = [name for name in table.columns if name not in ("class_id", CLASS_FIELD)]
    out = table[rest] if table.geometry.name == "geometry" else table[rest].rename_geometry("geometry")
    out.insert(0, "class_id", np.asarray(ids, dtype=np.int64))
    out.insert(1, CLASS_FIELD, pandas.Series(names, index=out.index, dtype="str"))
    return out
