"""How features look in QGIS: one colour per class, stored inside a GeoPackage.

QGIS reads the table ``layer_styles`` of a GeoPackage when it adds the layer, so that a single file
carries data and look. The table and the QML follow what QGIS itself writes (Save Style As, into the
data source database); newer versions read the <Option> form, versions before 3.26 the <prop> form.
Rejected: a .qml beside the file, which is lost when the file is sent.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from xml.sax.saxutils import quoteattr

from satseg.errors import UsageError

PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#000000")
"""Told apart by the colour-blind (Okabe and Ito, Color Universal Design, 2008)."""
FILL_ALPHA = 102
"""0..255: the image must show through."""

_TABLE = """CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""
_LISTED = """INSERT INTO gpkg_contents (table_name, data_type, identifier)
    VALUES ('layer_styles', 'attributes', 'layer_styles')"""
_STYLE = """INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column,
    styleName, styleQML, styleSLD, useAsDefault, description, owner)
    SELECT '', '', table_name, column_name, 'classes', ?, '', 1, 'one colour per class', ''
    FROM gpkg_geometry_columns"""


def class_colors(classes: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a colour "#rrggbb" for each class: the one given, else the next of the palette.

    Raises
    ------
    UsageError
        A given colour is not of that form.
    """
    chosen = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(classes)}
    chosen |= {name: color for name, color in (given or {}).items() if name in chosen}
    for color in chosen.values():
        _channels(color)
    return chosen


def qml(colors: Mapping[str, str], *, attribute: str = "class_name") -> str:
    """Return a QGIS style with one fill per value of `attribute`."""
    categories, symbols = [], []
    for place, (name, color) in enumerate(colors.items()):
        value = quoteattr(name)
        categories.append(
            f'<category render="true" type="string" symbol="{place}" value={value} label={value}/>'
        )
        symbols.append(_symbol(place, color))
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22.0" styleCategories="Symbology">\n'
        f'<renderer-v2 type="categorizedSymbol" attr={quoteattr(attribute)} symbollevels="0" '
        'enableorderby="0" forceraster="0">\n'
        f"<categories>\n{chr(10).join(categories)}\n</categories>\n"
        f"<symbols>\n{chr(10).join(symbols)}\n</symbols>\n</renderer-v2>\n</qgis>\n"
    )


def add_style(geopackage: Path, colors: Mapping[str, str]) -> None:
    """Put the style of `colors` into a finished GeoPackage as its default."""
    with closing(sqlite3.connect(geopackage)) as database, database:
        database.execute(_TABLE)
        database.execute(_LISTED)
        database.execute(_STYLE, (qml(colors),))


def _symbol(place: int, color: str) -> str:
    red, green, blue = _channels(color)
    properties = {
        "color": f"{red},{green},{blue},{FILL_ALPHA}",
        "outline_color": f"{red},{green},{blue},255",
        "outline_style": "solid",
        "outline_width": "0.4",
        "outline_width_unit": "MM",
        "style": "solid",
    }
    options = "".join(f'<Option type="QString" name="{k}" value="{v}"/>' for k, v in properties.items())
    props = "".join(f'<prop k="{k}" v="{v}"/>' for k, v in properties.items())
    return (
        f'<symbol type="fill" name="{place}" alpha="1" clip_to_extent="1" force_rhr="0">'
        '<layer class="SimpleFill" enabled="1" locked="0" pass="0">'
        f'<Option type="Map">{options}</Option>{props}</layer></symbol>'
    )


def _channels(color: str) -> tuple[int, int, int]:
    try:
        red, green, blue = bytes.fromhex(color.removeprefix("#"))
    except ValueError as error:
        raise UsageError(f"{color!r} is no colour", hint="give #rrggbb", code="E-USE-207") from error
    return red, green, blue
