"""From what was measured to the file: the data for page.js, the words for the template, and its size."""

import base64
import importlib.util
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import util
from figures import encoders
from reports import drawing, pairs
from reports.items import Looks
from reports.measures import Measured, average_by_class, compare_neighbors
from reports.outliers import Detection
from reports.pairs import Relations
from util import InputError

HERE = Path(__file__).parent
MOST_BYTES = 15_000_000  # of a page: it can be mailed
# of classes on maps, Paul Tol's schemes for color-blind readers: muted on white, light on black
PALETTE = {
    "light": {"classes": encoders.COLORS, "kinds": ("#0072B2", "#C77700", "#B4B8BF")},
    "dark": {
        "classes": ("#77AADD", "#EE8866", "#44BB99", "#EEDD88", "#FFAABB", "#99DDFF", "#BBCC33", "#AAAA00", "#DDDDDD"),
        "kinds": ("#56B4E9", "#E69F00", "#5A6068"),
    },
}


@dataclass(frozen=True)
class Table:
    """A table of results: title, first row, rows, and the lines below it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


@dataclass(frozen=True)
class Outliers:
    """What is shown of outliers: what they are called, how they were detected, their items, and of each its class."""

    title: str
    detector: str
    found: dict[str, Detection]
    looks: Looks
    names: list[str]


@dataclass(frozen=True)
class About:
    """What a page says of itself: title, a sentence on the data, what the items are ("image", "text", "row"), the
    command, versions, what each encoder is row by row, logs of trainings, and tables of results.
    """

    title: str
    data: str
    word: str
    command: str
    versions: dict[str, str]
    rows: dict[str, list[str]]
    logs: dict[str, list[dict]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Compared:
    """What a page shows: of n items their labels [n], of which some are on the maps, `shown` [m]; by encoder what was
    measured of all, the cosines of the classes [C, C], and a map [m, 2]; looks: of the shown items and their neighbors;
    total: how many test items there are, of which n were measured.
    """

    about: About
    relations: Relations
    labels: np.ndarray
    shown: np.ndarray
    total: int
    measured: dict[str, Measured]
    cosines: dict[str, np.ndarray]
    maps: list[np.ndarray]
    map_kind: str
    looks: Looks
    outliers: Outliers | None = None


def check_page(path: Path, flag: str) -> None:
    """Raise InputError, before any work, where no page could be written to `path`, or a library is missing."""
    util.check_folder(path.absolute().parent, flag)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{flag} {path}: a page's name ends in .html")
    for library in ("bokeh", "jinja2"):
        if importlib.util.find_spec(library) is None:
            raise InputError(f'{flag} {path}: needs {library}; pip install ".[report]"')


def _encode(table: np.ndarray) -> str:
    """Encode numbers from 0 to 1 as bytes of percent, in base64."""
    return base64.b64encode(np.rint(100 * table).clip(0, 255).astype(np.uint8).tobytes()).decode()


def _known(values: np.ndarray) -> list[float]:
    """Round percentages to a digit, -1 where unknown."""
    return [-1.0 if math.isnan(x) else round(float(x), 1) for x in values]


def make_data(compared: Compared, order: np.ndarray) -> dict[str, Any]:
    """Make what page.js reads, besides the document of Bokeh. order: the classes of the matrices."""
    relations, shown, found = compared.relations, compared.shown, [*compared.measured.values()]
    nearest = [of.nearest for of in found]
    ranking = ["ranking"] if relations.similarity is not None else []
    return {
        "word": compared.about.word,
        "encoders": [*compared.measured],
        "classes": relations.names,
        "groups": relations.groups,
        "groupOf": relations.group_of,
        "related": _encode(relations.related),
        "label": compared.labels.tolist(),
        "shown": shown.tolist(),
        "k": nearest[0].shape[1],
        "nearest": [of[shown].ravel().tolist() for of in nearest],
        "cosines": [np.rint(1000 * of.cosines[shown]).astype(int).ravel().tolist() for of in found],
        "ap": [_known(of.ap[shown]) for of in found],
        "disagreement": _known(compare_neighbors(nearest)[shown]) if len(nearest) > 1 else [],
        "thumbnails": compared.looks.thumbnails,
        "texts": compared.looks.texts,
        "pixelated": compared.looks.pixelated,
        "matrix": order.tolist(),
        "tables": [*ranking, *compared.measured],
        "palette": PALETTE,
    }


def list_classes(compared: Compared) -> list[dict[str, Any]]:
    """Make the rows of the table of classes: name, superclass, queries, R@1 and mAP per encoder, None where unknown."""
    relations, count = compared.relations, len(compared.relations.names)
    columns, encoder_of = {}, {}
    for measure in ("first", "ap"):
        for e, of in enumerate(compared.measured.values()):
            title = f"{'R@1' if measure == 'first' else 'mAP'} {e}"
            columns[title] = average_by_class(getattr(of, measure), compared.labels, count)
            encoder_of[title] = e
    known = ~np.isnan(next(iter(compared.measured.values())).ap)
    queries = np.bincount(compared.labels[known], minlength=count)
    return [
        {
            "name": name,
            "group": relations.groups[relations.group_of[c]] if relations.groups else "",
            "queries": int(queries[c]),
            "cells": {title: None if math.isnan(of[c]) else float(of[c]) for title, of in columns.items()},
            "encoder_of": encoder_of,
        }
        for c, name in enumerate(relations.names)
    ]


def _draw(compared: Compared, order: np.ndarray):
    """Draw the document of Bokeh with the elements of its roots; titles of the charts of trainings by name; and of
    each row of matrices its title, colors, lowest value, and titles by name.
    """
    from bokeh.core.json_encoder import serialize_json
    from bokeh.document import Document

    names, document = [*compared.measured], Document()
    drawing.draw_maps(document, compared.maps)
    charts = drawing.draw_training(document, compared.about.logs, names)
    cells = np.ix_(order, order)
    cosines, ranking = [table[cells] for table in compared.cosines.values()], compared.relations.similarity
    with_ranking = ["ranking"] if ranking is not None else []
    tables, titles = [*([ranking[cells]] if ranking is not None else []), *cosines], [*with_ranking, *names]
    low = min(0.0, *(float(np.nanmin(table)) for table in tables))
    drawn = drawing.draw_matrices(document, tables, titles, low)
    matrices = [("Similarity and mean cosine", "cividis", low, drawn)]
    if ranking is not None:
        differences, titles = [table - ranking[cells] for table in cosines], [f"{name} minus ranking" for name in names]
        drawn = drawing.draw_matrices(document, differences, titles, -1, len(tables))
        matrices.append(("Difference to the ranking", "diverging", -1.0, drawn))
    if compared.outliers:
        drawing.draw_outliers(document, compared.outliers.found, names)
    roots = {root.id: root.name.replace(" ", "-") for root in document.roots}
    drawn = json.loads(serialize_json(document.to_json(deferred=False)))
    content = {"document": {"page": drawn}, "roots": [{"docid": "page", "roots": roots, "root_ids": [*roots]}]}
    return content, charts, matrices


def _list_hardest(outliers: Outliers, classes: list[str]) -> dict[int, list[dict]]:
    found = {}
    for e, of in enumerate(outliers.found.values()):
        rows = zip(of.hardest, of.taken_for, of.cosines, strict=True)
        found[e] = [
            {
                "thumbnail": outliers.looks.thumbnails.get(i),
                "text": outliers.looks.texts.get(i, f"item {i}"),
                "of": outliers.names[i],
                "taken_for": classes[c],
                "cosine": cosine,
            }
            for i, c, cosine in rows
        ]
    return found


def render(compared: Compared) -> str:
    """Write the page, one text of HTML: what users named is text in it, never markup."""
    import jinja2
    from bokeh.resources import Resources

    relations, about, names = compared.relations, compared.about, [*compared.measured]
    order = pairs.thin_out(pairs.order_classes(relations, next(iter(compared.cosines.values()))))
    content, charts, matrices = _draw(compared, order)
    library = "".join(Resources(mode="inline", components=["bokeh"]).js_raw[:1]).partition("//# sourceMappingURL")[0]
    ranking, cosines = relations.similarity, [*compared.cosines.values()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    # in the order of Bokeh, which names a model once and refers to it after
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    page = environment.get_template("page.html").render(
        title=about.title,
        about=about.data,
        word=about.word,
        terms=yaml.safe_load((HERE / "terms.yaml").read_text()),
        names=names,
        colors=drawing.COLORS,
        dashes=[*drawing.DASHES],
        rows=about.rows,
        tables=about.tables,
        charts=charts,
        unlogged=[name for name in names if name not in about.logs],
        classes=relations.names,
        groups=relations.groups,
        shown=len(compared.shown),
        total=compared.total,
        measured=len(compared.labels),
        map_kind=compared.map_kind,
        k=next(iter(compared.measured.values())).nearest.shape[1],
        left_out=compared.looks.left_out,
        pixelated=compared.looks.pixelated,
        matrix_size=len(order),
        matrices=matrices,
        has_ranking=ranking is not None,
        extremes={} if ranking is None else {e: pairs.find_extremes(ranking, of) for e, of in enumerate(cosines)},
        ood={} if compared.outliers is None else dict(enumerate(compared.outliers.found.values())),
        outliers=compared.outliers and compared.outliers.title,
        detector=compared.outliers and compared.outliers.detector,
        hardest={} if compared.outliers is None else _list_hardest(compared.outliers, relations.names),
        by_class=list_classes(compared),
        command=about.command,
        versions=about.versions,
        data=make_data(compared, order) | content,
        library=library,
        style=(HERE / "templates/style.css").read_text(),
        script=(HERE / "templates/page.js").read_text(),
    )
    if len(page.encode()) > MOST_BYTES:
        size = len(page.encode()) / 1e6
        raise InputError(f"--max_items {len(compared.shown)}: the page would have {size:.1f} MB; give fewer items")
    return page
