"""FeatureWriter: features to a file in batches, so that memory does not follow their number.

The file is the one that `write_features` makes of all batches at once: same columns, options, style,
checks and errors, and absent or complete under its name. Batches are gathered until they are worth a
step of the format, and cut where they are too large for one; what is held is that much. FlatGeobuf
keeps the box of each feature besides, for its index, which GDAL sorts at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

import geopandas
import numpy as np
import pandas
import shapely
from numpy.typing import NDArray

from satseg.crs import CRSLike, describe, same_crs, to_pyproj
from satseg.errors import CRSError, OutputError, UsageError
from satseg.imagery.labels import CLASS_FIELD
from satseg.output import AtomicOutput
from satseg.vector.features import empty_features
from satseg.vector.finish import Geometries
from satseg.vector.formats import PathLike, check_target
from satseg.vector.shapefile import NUMBER_BYTES, TEXT_BYTES, check_size
from satseg.vector.sinks import Sink, open_sink
from satseg.vector.styles import add_style, class_colors
from satseg.vector.written import as_output_error, verify

BATCH_BYTES = 2**24
"""Of features written in one step: some ten thousand, so that steps cost little beside their features."""
FEATURE_BYTES, POINT_BYTES = 100, 16
"""About what a feature and a point of its outline take in a file."""
COLUMNS = tuple(empty_features().columns)
_POLYGON = 3  # GEOS type number


class FeatureWriter:
    """A file of features that is written in batches.

    Used as ``with FeatureWriter(path, crs=crs) as out: out.write(batch)``. Leaving the block without
    an error publishes the file; leaving it with one removes what there is of it.

    Parameters
    ----------
    path : path-like
        As in `write_features`: the suffix picks the format.
    crs : CRS or None
        Of all batches and of the file.
    overwrite : bool
        Whether existing files may be replaced.
    colors : mapping of class name to "#rrggbb", optional
        For the style inside a GeoPackage.
    classes : sequence of str, optional
        That the style has besides those that come: also a class without a feature keeps its colour.

    Raises
    ------
    UsageError, CRSError, OutputError
        At construction, so before any work: as `check_target`, or a colour that is none (E-USE-207).
        In the block or at its end: the file cannot be written, or the format cannot hold the features.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        crs: CRSLike | None,
        overwrite: bool = False,
        colors: Mapping[str, str] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._form = check_target(path, crs=crs, overwrite=overwrite)
        class_colors(list(colors or ()), colors)
        self._path, self._crs, self._colors = path, None if crs is None else to_pyproj(crs), colors
        self._out = AtomicOutput(path, overwrite=overwrite)
        self._classes = set(classes or ())
        self._count = self._points = self._longest = 0
        self._pending: list[geopandas.GeoDataFrame] = []
        self._pending_bytes = 0
        self._stack = ExitStack()
        self._sink: Sink | None = None

    @property
    def count(self) -> int:
        """Features taken so far."""
        return self._count

    def __enter__(self) -> FeatureWriter:
        with ExitStack() as stack:
            out = stack.enter_context(self._out)
            with self._refusals():
                self._sink = open_sink(out.temporary, self._form, self._crs)
            self._stack = stack.pop_all()
        return self

    def write(self, batch: geopandas.GeoDataFrame) -> None:
        """Write some features.

        Parameters
        ----------
        batch : GeoDataFrame
            class_id, class_name, score, area_m2 and geometry (Polygon), as `as_features` makes it.

        Raises
        ------
        UsageError
            The columns or geometries are others (E-USE-232), or the block is not entered or left.
        CRSError
            The batch has another CRS than the file (E-CRS-212).
        OutputError
            The format cannot hold it, or the file cannot be written.
        """
        shapes = batch.geometry.to_numpy()
        self._check(batch, shapes)
        points = np.asarray(shapely.get_num_coordinates(shapes), dtype=np.int64)
        self._count += len(batch)
        self._points += int(points.sum())
        for part, size in _parts(batch, FEATURE_BYTES + POINT_BYTES * points):
            self._pending.append(part)
            self._pending_bytes += size
            if self._pending_bytes >= BATCH_BYTES:
                self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sink, self._sink = self._open(), None
        if kind is not None:
            sink.abort()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._finish(sink)

    def _finish(self, sink: Sink) -> None:
        """Write what is left, close the file, and look at it."""
        temporary = self._out.temporary
        with ExitStack() as stack:
            stack.callback(sink.abort)
            with self._refusals():
                self._hand_over(sink)
                sink.close()
            stack.pop_all()
        with self._refusals():
            if self._form.driver == "GPKG":
                add_style(temporary, class_colors(sorted(self._classes), self._colors))
        verify(temporary, self._form, self._path, count=self._count, crs=self._crs)

    def _open(self) -> Sink:
        if self._sink is None:
            raise UsageError("a FeatureWriter is used as a context manager", code="E-USE-233")
        return self._sink

    def _flush(self) -> None:
        with self._refusals():
            self._hand_over(self._open())

    def _hand_over(self, sink: Sink) -> None:
        if self._pending:
            whole = self._pending[0]
            if len(self._pending) > 1:
                whole = pandas.concat(self._pending, ignore_index=True)
            self._pending, self._pending_bytes = [], 0
            names = [str(name) for name in whole[CLASS_FIELD].dropna().unique()]
            self._classes.update(names)
            if self._form.driver == "ESRI Shapefile":
                self._check_room(names)
            sink.write(whole)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Name the file in what is refused inside the block."""
        try:
            with as_output_error(self._path):
                yield
        except OutputError as error:
            error.path = error.path or str(self._path)
            raise

    def _check(self, batch: geopandas.GeoDataFrame, shapes: Geometries) -> None:
        self._open()
        if tuple(batch.columns) != COLUMNS:
            raise UsageError(
                f"columns {list(batch.columns)} are not {list(COLUMNS)}",
                hint="write_features takes any", code="E-USE-232",
            )  # fmt: skip
        if not np.all(shapely.get_type_id(shapes) == _POLYGON):
            raise UsageError(
                "batches hold polygons only", hint="write_features takes other geometries", code="E-USE-232"
            )
        if batch.crs is not self._crs and not same_crs(batch.crs, self._crs):
            raise CRSError(
                f"a batch in {describe(batch.crs)} does not belong into a file in {describe(self._crs)}",
                code="E-CRS-212",
            )

    def _check_room(self, names: Sequence[str]) -> None:
        """Raise when a shapefile cannot hold what has come so far."""
        self._longest = max([self._longest, *(len(name.encode()) for name in names)])
        if self._longest > TEXT_BYTES:
            raise OutputError(
                f"a class name has {self._longest} bytes, a text of a shapefile at most {TEXT_BYTES}",
                hint="choose .gpkg", code="E-OUT-212",
            )  # fmt: skip
        check_size(self._count, points=self._points, record=3 * NUMBER_BYTES + self._longest)


def _parts(batch: geopandas.GeoDataFrame, sizes: NDArray[np.int64]) -> Iterator[tuple[geopandas.GeoDataFrame, int]]:
    """Yield `batch` in parts of about `BATCH_BYTES`, each with its size."""
    total = np.cumsum(sizes)
    if not len(total):
        return
    if total[-1] <= BATCH_BYTES:
        yield batch, int(total[-1])
        return
    starts = np.unique(np.searchsorted(total - sizes, np.arange(0, total[-1], BATCH_BYTES)))
    for start, stop in zip(starts, [*starts[1:], len(batch)], strict=True):
        if start < stop:
            yield batch.iloc[start:stop], int(sizes[start:stop].sum())
