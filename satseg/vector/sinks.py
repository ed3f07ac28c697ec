"""Where batches of features go: GDAL's formats, GeoParquet and CSV, each open while batches arrive.

GDAL writes a stream of Arrow batches in one call, which asks for the next batch when it wants one. So
that call runs in a thread of its own and waits for what `GdalSink.write` hands over, `AHEAD` batches
at most. GeoParquet is written here as a row group per batch, its head taken from an empty layer that
geopandas writes, so that both write the same columns and metadata.

Rejected: one appending call per batch (FlatGeobuf and GeoJSON cannot be appended to, and every call
opens the file anew), GDAL's own loop over features (several times slower), and keeping all batches in
a file until the end (twice the disk).
"""

from __future__ import annotations

import io
import json
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import geopandas
import numpy as np
import pyarrow
import pyarrow.parquet
import pyogrio.raw
import pyproj
import shapely

from satseg.errors import OutputError
from satseg.vector.features import empty_features
from satseg.vector.formats import VectorFormat
from satseg.vector.wkt_csv import add_rows, write_prj
from satseg.vector.written import divided, warnings_logged

AHEAD = 1
"""Batches that wait while GDAL writes one."""
GEOMETRY = "geometry"
_PLAIN = pyarrow.schema(
    [
        ("class_id", pyarrow.int64()),
        ("class_name", pyarrow.large_string()),
        ("score", pyarrow.float64()),
        ("area_m2", pyarrow.float64()),
        (GEOMETRY, pyarrow.binary()),
    ]
)


class Sink(Protocol):
    """A file that takes batches of the standard columns."""

    def write(self, batch: geopandas.GeoDataFrame) -> None:
        """Take some features; the file may be written later."""

    def close(self) -> None:
        """Finish the file."""

    def abort(self) -> None:
        """Let go of the file; what was written of it is worthless. Never raises."""


def open_sink(path: Path, form: VectorFormat, crs: pyproj.CRS | None) -> Sink:
    """Return the sink of a format, its file begun at `path`.

    Raises
    ------
    OutputError, OSError, pyarrow.ArrowException
        The file cannot be made.
    """
    if form.driver == "CSV":
        return CsvSink(path, crs)
    if form.driver == "Parquet":
        return ParquetSink(path, crs)
    return GdalSink(path, form, crs)


def _record(batch: geopandas.GeoDataFrame, schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    """Return the features as Arrow arrays, NaN as null; `schema` may ask for their boxes too."""
    shapes = batch.geometry.to_numpy()
    columns = []
    for field in schema:
        if field.name == GEOMETRY:
            columns.append(pyarrow.array(shapely.to_wkb(shapes), field.type))
        elif field.name == "bbox":
            sides = [np.ascontiguousarray(side) for side in shapely.bounds(shapes).reshape(-1, 4).T]
            columns.append(pyarrow.StructArray.from_arrays(sides, fields=list(field.type)))
        else:
            made = pyarrow.Table.from_pandas(batch[[field.name]], pyarrow.schema([field]), preserve_index=False)
            columns.append(made.column(0).combine_chunks())
    return pyarrow.record_batch(columns, schema=schema)


class GdalSink:
    """A file that GDAL writes, in a thread of its own.

    Parameters
    ----------
    path : Path
    form : VectorFormat
    crs : pyproj.CRS or None

    Raises
    ------
    OutputError
        GDAL refuses (E-OUT-202), here or in `write` and `close`.
    """

    def __init__(self, path: Path, form: VectorFormat, crs: pyproj.CRS | None) -> None:
        self._path, self._form, self._crs = path, form, crs
        # GDAL would make a .shp of a .SHP, and then not find it.
        self._made = path.with_suffix(path.suffix.lower())
        self._turn = threading.Condition()
        self._waiting: deque[pyarrow.RecordBatch] = deque()
        self._begun = self._closing = self._ended = self._whole = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        with warnings_logged(), self._turn:
            self._thread.start()
            self._turn.wait_for(lambda: self._begun or self._ended)
        self._check()

    def write(self, batch: geopandas.GeoDataFrame) -> None:
        """Hand over some features; waits while GDAL has `AHEAD` batches to do."""
        record = _record(divided(batch) if self._form.driver == "GeoJSON" else batch, _PLAIN)
        with self._turn:
            self._turn.wait_for(lambda: len(self._waiting) < AHEAD or self._ended)
            self._waiting.append(record)
            self._turn.notify_all()
        self._check()

    def close(self) -> None:
        """Wait until GDAL has written everything."""
        with warnings_logged():
            self._stop()
        self._check()
        self._made.replace(self._path)

    def abort(self) -> None:
        """Drop what waits, and wait until GDAL has let go of the file."""
        with self._turn:
            self._waiting.clear()
        self._stop()

    def _stop(self) -> None:
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        self._thread.join()

    def _check(self) -> None:
        if self._ended and not self._whole:
            said = self._failure or "its writer ended early"
            raise OutputError(f"cannot write it: {said}", code="E-OUT-202") from self._failure

    def _run(self) -> None:
        epsg = None if self._crs is None else self._crs.to_epsg()
        place = None if self._crs is None else f"EPSG:{epsg}" if epsg else self._crs.to_wkt("WKT1_GDAL")
        try:
            pyogrio.raw.write_arrow(
                pyarrow.RecordBatchReader.from_batches(_PLAIN, self._batches()), self._made,
                layer=self._path.stem, driver=self._form.driver, geometry_name=GEOMETRY, crs=place,
                geometry_type="Unknown" if self._form.driver == "GeoJSON" else "Polygon",
                dataset_options=dict(self._form.dataset_options), layer_options=dict(self._form.layer_options),
            )  # fmt: skip
            self._whole = self._closing
        except (RuntimeError, ValueError, OSError, MemoryError, pyarrow.ArrowException) as error:
            self._failure = error
        finally:
            with self._turn:
                self._ended = True
                self._turn.notify_all()

    def _batches(self) -> Iterator[pyarrow.RecordBatch]:
        """Yield what is handed over until the end; GDAL's thread waits here."""
        while True:
            with self._turn:
                self._begun = True
                self._turn.notify_all()
                self._turn.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                record = self._waiting.popleft()
                self._turn.notify_all()
            yield record


class ParquetSink:
    """A GeoParquet 1.1 file with the box of each feature beside it, a row group per batch.

    Parameters
    ----------
    path : Path
    crs : pyproj.CRS or None
    """

    def __init__(self, path: Path, crs: pyproj.CRS | None) -> None:
        head = io.BytesIO()
        options = {"index": False, "write_covering_bbox": True, "schema_version": "1.1.0"}
        empty_features(crs).to_parquet(head, **options)
        schema = pyarrow.parquet.read_schema(head)
        metadata = dict(schema.metadata)
        self._geo = json.loads(metadata.pop(b"geo"))
        self._schema = schema.with_metadata(metadata)
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        # Arrow's own copy of the schema is left out: readers would look there for "geo", which comes at the end.
        # A dictionary of what never repeats is built for nothing.
        self._writer = pyarrow.parquet.ParquetWriter(
            path, self._schema, compression="zstd", store_schema=False, use_dictionary=["class_id", "class_name"]
        )

    def write(self, batch: geopandas.GeoDataFrame) -> None:
        """Write some features as a row group."""
        record = _record(batch, self._schema)
        self._writer.write_batch(record)
        for place, side in enumerate(record.column("bbox").flatten() if len(batch) else ()):
            extreme = (np.min, np.min, np.max, np.max)[place]
            self._bounds[place] = extreme([self._bounds[place], extreme(side.to_numpy())])

    def close(self) -> None:
        """Write what the file is about, which is known at the end only."""
        column = self._geo["columns"][GEOMETRY]
        if np.isfinite(self._bounds).all():
            column |= {"geometry_types": ["Polygon"], "bbox": self._bounds.tolist()}
        self._writer.add_key_value_metadata({"geo": json.dumps(self._geo)})
        self._writer.close()

    def abort(self) -> None:
        """Let go of the file."""
        try:
            self._writer.close()
        except (OSError, pyarrow.ArrowException):  # the disk is full still
            return


class CsvSink:
    """A table of WKT, and a .prj beside it.

    Parameters
    ----------
    path : Path
    crs : pyproj.CRS or None
    """

    def __init__(self, path: Path, crs: pyproj.CRS | None) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        write_prj(crs, path)
        add_rows(empty_features(crs), self._file, header=True)

    def write(self, batch: geopandas.GeoDataFrame) -> None:
        """Write some features as lines."""
        add_rows(batch, self._file, header=False)

    def close(self) -> None:
        """Write the last of it."""
        self._file.close()

    def abort(self) -> None:
        """Let go of the file."""
        try:
            self._file.close()
        except OSError:  # the disk is full still
            return
