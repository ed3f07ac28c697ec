"""ContestFolder and Tile: the contest's files where they lie, and each tile as one scene of 20 bands.

A tile's files state no place and have pixels of different sizes over the same ground. `Tile.scene` opens each by
itself, with the names of its bands said, and lays it on its own grid in the tile's frame (`Tile.grid_of`); from there
on a scene's ordinary resampling brings all of them onto the three-band grid. The grids are the one place where a
product's place is decided: `register` lays M and A, which were taken seconds apart from RGB, over it by changing a
transform and no pixel (`satseg.imagery.registration`).
Rejected: `open_scene` on the four files, which rightly refuses sizes that differ without a place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import geopandas

from satseg.errors import BandError, GridError, InputError, LabelError, UsageError
from satseg.grid import Grid
from satseg.imagery.registration import registered
from satseg.imagery.scene import Scene, open_scene
from satseg.imagery.sources import BandSource
from satseg.specs import suggest
from satseg.tasks.dstl.facts import BANDS, DTYPE, PRODUCTS, SENSOR, Product
from satseg.tasks.dstl.frame import Frame, Scaling, Units, scaled
from satseg.tasks.dstl.labels import read_geojson_labels, read_wkt_labels
from satseg.tasks.dstl.tables import PathLike, read_grid_sizes

THREE, SIXTEEN = "three_band", "sixteen_band"
GRID_SIZES, WKT_LABELS, GEOJSON_LABELS = "grid_sizes.csv", "train_wkt_v4.csv", "train_geojson_v3"
SAMPLE = "sample_submission.csv"
ODD_PX = 3
"""Pixels by which a file's shape may differ from the three-band file's, or, as fine as that, each of its sides."""


def check_products(products: Sequence[str]) -> None:
    """Raise UsageError (E-USE-301) when `products` are none, unknown or repeat."""
    if isinstance(products, str) or not products or len(set(products)) < len(products):
        raise UsageError(f"products {products!r} are none, no list, or repeat", code="E-USE-301")
    if unknown := [product for product in products if product not in PRODUCTS]:
        raise UsageError(
            f"no product {', '.join(map(repr, unknown))}; there are {', '.join(PRODUCTS)}", code="E-USE-301"
        )


def file_of(folder: Path, image_id: str, product: Product) -> Path:
    """Return where the contest keeps a product of a tile."""
    if product == "rgb":
        return folder / THREE / f"{image_id}.tif"
    return folder / SIXTEEN / f"{image_id}_{product}.tif"


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile: its files, and the extent of its frame.

    Parameters
    ----------
    image_id : str
        Such as ``6120_2_4``.
    files : mapping of "rgb", "P", "M", "A" to path
        Where each product is, or would be.
    extent : (x_max, y_min)
        From ``grid_sizes.csv``.
    scaling : "official" or "minus_one"
        See `Frame`.
    """

    image_id: str
    files: Mapping[Product, Path]
    extent: tuple[float, float]
    scaling: Scaling = "official"

    @property
    def products(self) -> tuple[Product, ...]:
        """The products whose file is there."""
        return tuple(product for product in PRODUCTS if self.files[product].is_file())

    def check_files(self, products: Sequence[Product]) -> None:
        """Raise InputError (E-IN-311) when the file of one of `products` is not there."""
        there = self.products
        for product in products:
            if product not in there:
                others = f", or choose among products {', '.join(there)}" if there else ""
                raise InputError(
                    f"tile {self.image_id} has no {product} file",
                    hint=f"unpack {THREE}.zip and {SIXTEEN}.zip{others}", code="E-IN-311", path=self.files[product],
                )  # fmt: skip

    def frame(self) -> Frame:
        """Return the frame of the labels; opens the three-band file for its size.

        Raises
        ------
        InputError
            That file is missing (E-IN-311) or damaged.
        GridError
            The extent does not fit its shape.
        """
        return self._frame_on(self._open("rgb").grid)

    def grid_of(self, product: Product, frame: Frame, size: Grid, *, units: Units = "label") -> Grid:
        """Return where the pixels of `product` lie: over all of the tile's ground, their outer edges met.

        Parameters
        ----------
        product : "rgb", "P", "M" or "A"
        frame : Frame
            The tile's.
        size : Grid
            The file's own, of which only height and width count.
        units : "label", "metres" or "pixels"
            Of the grid's coordinates, as in `Frame`.

        Raises
        ------
        GridError
            The file is of another shape than the tile, or finer (E-GRID-303).
        """
        as_fine = max(abs(size.width - frame.width), abs(size.height - frame.height)) <= ODD_PX
        odd = abs(size.width / frame.width * frame.height - size.height)
        if not as_fine and (odd > ODD_PX or size.width > frame.width + ODD_PX):
            raise GridError(
                f"{size.width} x {size.height} pixels do not show the ground of {frame.width} x {frame.height}, "
                f"the three-band file's of {self.image_id}",
                hint="is it the file of another tile?",
                code="E-GRID-303",
                path=self.files[product],
            )
        return frame.grid(height=size.height, width=size.width, units=units)

    def scene(
        self, *, products: Sequence[Product] = PRODUCTS, units: Units = "label", register: bool = False
    ) -> Scene:
        """Return the tile's files as one scene on the three-band grid, without CRS; reads no pixels, but to register.

        Parameters
        ----------
        products : sequence of "rgb", "P", "M", "A"
            Whose bands it has, in that order; the three-band file is opened in any case, for the grid.
        units : "label", "metres" or "pixels"
            Of the scene's coordinates: labels as they are, or lengths (see `Frame`).
        register : bool
            Lay the other products over the three-band image, which the labels were drawn on; what was found is in
            `registrations`, and in `warnings` where it failed.

        Raises
        ------
        UsageError
            `products` are none, unknown or repeat (E-USE-301), or unknown `units` (E-USE-306).
        InputError
            A file is missing (E-IN-311) or damaged.
        BandError
            A file has another number of bands (E-BAND-301) or another dtype than uint16 (E-BAND-302).
        GridError
            A file does not show the tile's ground.
        """
        check_products(products)
        lead = self._open("rgb")
        frame = self._frame_on(lead.grid)
        sources: list[BandSource] = []
        warnings = list(lead.warnings)
        for product in dict.fromkeys(("rgb", *products)) if register else products:
            own = lead if product == "rgb" else self._open(product)
            warnings += [] if own is lead else own.warnings
            grid = self.grid_of(product, frame, own.grid, units=units)
            # `placed` stays as the file has it: it tells how the file is to be opened.
            sources += [replace(source, file=replace(source.file, grid=grid)) for source in own.sources]
        scene = Scene(
            self.image_id,
            self.grid_of("rgb", frame, lead.grid, units=units),
            tuple(sources),
            sensor=SENSOR,
            naming="by product of the DSTL contest",
            warnings=tuple(warnings),
        )
        return self._registered(scene, products) if register else scene

    def _registered(self, scene: Scene, products: Sequence[Product]) -> Scene:
        """`scene` with its products over the three-band image, and with the bands of `products` alone."""
        moved = registered(scene)
        by_path = {os.fspath(self.files[product]): product for product in PRODUCTS}
        kept = [[source for source in moved.sources if by_path[source.path] == product] for product in products]
        return replace(moved, sources=tuple(source for sources in kept for source in sources))

    def _frame_on(self, grid: Grid) -> Frame:
        try:
            return Frame(grid.width, grid.height, *self.extent, self.scaling)
        except GridError as error:
            raise GridError(
                f"{error.message} (tile {self.image_id})", hint=error.hint, code=error.code, path=self.files["rgb"]
            ) from error

    def _open(self, product: Product) -> Scene:
        """Open one file under the names of its bands."""
        self.check_files([product])
        path = self.files[product]
        try:
            scene = open_scene(path, bands=BANDS[product])
        except BandError as error:
            raise BandError(
                f"it does not have the {len(BANDS[product])} bands of a {product} file: {error.message}",
                code="E-BAND-301",
                path=path,
            ) from error
        odd = sorted({source.dtype for source in scene.sources} - {DTYPE})
        if odd:
            raise BandError(
                f"its pixels are {', '.join(odd)}, those of the contest's files {DTYPE}",
                hint="full scales of 11 and 14 bits hold for these; give the files as they came", code="E-BAND-302",
                path=path,
            )  # fmt: skip
        return scene


@dataclass(frozen=True, slots=True)
class ContestFolder:
    """The contest's folder. Made by `ContestFolder.open`.

    Parameters
    ----------
    path : Path
    extents : mapping of tile to (Xmax, Ymin)
        From ``grid_sizes.csv``, in its order.
    scaling : "official" or "minus_one"
        See `Frame`.
    """

    path: Path
    extents: Mapping[str, tuple[float, float]]
    scaling: Scaling = "official"

    @classmethod
    def open(cls, path: PathLike, *, scaling: Scaling = "official") -> ContestFolder:
        """Return the folder at `path`; reads ``grid_sizes.csv`` and nothing else.

        Raises
        ------
        InputError
            No folder (E-IN-312), or faults of ``grid_sizes.csv`` as in `read_grid_sizes`.
        UsageError
            An unknown `scaling` (E-USE-305).
        """
        scaled(1, scaling)  # refuses an unknown one before the first tile is opened
        place = Path(path)
        if not place.is_dir():
            hint = f"give the one with {GRID_SIZES}"
            fault = "it is a file, not a folder" if place.exists() else "there is no such folder"
            raise InputError(fault, hint=hint, code="E-IN-312", path=path)
        return cls(place, MappingProxyType(dict(read_grid_sizes(place / GRID_SIZES))), scaling)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """All tiles of ``grid_sizes.csv``."""
        return tuple(self.extents)

    def tile(self, image_id: str) -> Tile:
        """Return a tile, whether its files are there or not.

        Raises
        ------
        InputError
            ``grid_sizes.csv`` has no such tile (E-IN-313).
        """
        if image_id not in self.extents:
            raise InputError(
                f"no tile {image_id!r} among {len(self.extents)}{suggest(image_id, self.image_ids)}",
                code="E-IN-313", path=self.path / GRID_SIZES,
            )  # fmt: skip
        files = {product: file_of(self.path, image_id, product) for product in PRODUCTS}
        return Tile(image_id, MappingProxyType(files), self.extents[image_id], self.scaling)

    def tiles(self, products: Sequence[Product] = PRODUCTS) -> Iterator[Tile]:
        """Yield the tiles of which the files of all `products` and the three-band file are there.

        Raises
        ------
        UsageError
            `products` are none, unknown or repeat (E-USE-301).
        """
        check_products(products)
        for tile in map(self.tile, self.extents):
            if {"rgb", *products} <= set(tile.products):
                yield tile

    def labels(self, *, form: str | None = None) -> dict[str, geopandas.GeoDataFrame]:
        """Return the labels of every labelled tile, in label units (see `satseg.tasks.dstl.labels`).

        Parameters
        ----------
        form : "wkt" or "geojson", optional
            Which of the two copies to read; the first that is there when left out.

        Raises
        ------
        InputError, LabelError
            Neither is there (E-IN-314), or as `read_wkt_labels` and `read_geojson_labels`.
        """
        forms = {"wkt": (WKT_LABELS, read_wkt_labels), "geojson": (GEOJSON_LABELS, read_geojson_labels)}
        if form is not None and form not in forms:
            raise UsageError(f"labels come as {' or '.join(forms)}, not {form!r}", code="E-USE-302")
        there = [name for name in forms if (self.path / forms[name][0]).exists()]
        if form is None and not there:
            names = " and no ".join(name for name, _ in forms.values())
            raise InputError(f"no {names}", hint="unpack the labels beside the images", code="E-IN-314", path=self.path)
        name, read = forms[form or there[0]]
        return read(self.path / name, self.extents)

    def labels_of(self, image_id: str, *, form: str | None = None) -> geopandas.GeoDataFrame:
        """Return the labels of one tile.

        Raises
        ------
        LabelError
            The tile has none (E-LAB-313); else as `labels`.
        """
        self.tile(image_id)
        found = self.labels(form=form)
        if image_id not in found:
            raise LabelError(
                f"tile {image_id} has no labels; {len(found)} tiles have some",
                hint=f"labelled are {', '.join(sorted(found)[:5])}, ...", code="E-LAB-313", path=self.path,
            )  # fmt: skip
        return found[image_id]
