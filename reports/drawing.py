"""The charts of a page, as Bokeh's models: each is a root of one Document, drawn into an element of its name."""

from collections.abc import Sequence

import numpy as np

from reports.outliers import Detection

# encoders, Okabe and Ito's colors, told apart by color-blind readers; and a dash for each, for those who see none
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B")
DASHES = {
    "solid": [],
    "dashed": [6, 3],
    "dash-dot": [8, 3, 2, 3],
    "long dashes": [14, 4],
    "short dashes": [3, 3],
    "dash-dot-dot": [8, 3, 2, 3, 2, 3],
}
GRAY = "#808080"
# title of a chart -> key of a log's record, and the factor to its unit; of ranks the chance level is drawn, too
MEASURES = {
    "loss": ("loss", 1),
    **{f"loss of rank {r}": (f"loss_rank_{r}", 1) for r in range(4)},
    "k-NN accuracy on validation, in %": ("val_knn", 1),
    "top-1 on validation, in %": ("val_top1", 1),
    "alignment": ("alignment", 1),
    "uniformity": ("uniformity", 1),
    "learning rate": ("learning_rate", 1),
    "waiting for data, in %": ("waiting_for_data", 100),
}
MAP_TOOLS = "pan,wheel_zoom,lasso_select,reset"


def _new_figure(name: str, **how):
    from bokeh.plotting import figure

    shown = figure(name=name, sizing_mode="scale_width", width=400, background_fill_color=None, **how)
    shown.border_fill_color = shown.outline_line_color = None
    shown.toolbar.logo = None
    return shown


def draw_maps(document, maps: Sequence[np.ndarray]) -> None:
    """Draw a map of each encoder, "map 0" and on, over one source "items", so that what is selected in one is in all.

    page.js chooses colors and markers, and is called with what the pointer is on and what is selected.
    """
    from bokeh.models import BoxSelectTool, ColumnDataSource, CustomJS, HoverTool, TapTool

    columns = {"color": [GRAY] * len(maps[0]), "marker": ["circle"] * len(maps[0])}
    for number, points in enumerate(maps):
        columns |= {f"x{number}": points[:, 0].astype(np.float32), f"y{number}": points[:, 1].astype(np.float32)}
    source = ColumnDataSource(columns, name="items")
    source.selected.js_on_change("indices", CustomJS(code="report.onSelect(cb_obj.indices)"))
    for number in range(len(maps)):
        shown = _new_figure(f"map {number}", height=400, match_aspect=True, tools=MAP_TOOLS, active_drag=None)
        shown.toolbar_location = "above"
        how = dict(size=7, marker="marker", color="color", line_color=None, source=source)
        dots = shown.scatter(f"x{number}", f"y{number}", fill_alpha=0.75, nonselection_fill_alpha=0.12, **how)
        dots.selection_glyph = dots.glyph.clone(size=10, fill_alpha=1.0)
        hover = HoverTool(renderers=[dots], tooltips=None, callback=CustomJS(code="report.onHover(cb_data)"))
        shown.add_tools(hover, TapTool(renderers=[dots]), BoxSelectTool(renderers=[dots]))
        shown.axis.visible = shown.grid.visible = False
        document.add_root(shown)


def draw_training(document, logs: dict[str, list[dict]], names: Sequence[str]) -> dict[str, str]:
    """Draw a chart of each of MEASURES that some log has; returns their titles by name. names: of all encoders."""
    from bokeh.models import HoverTool

    titles = {}
    for title, (key, factor) in MEASURES.items():
        chance = key.replace("loss_rank", "chance_rank") if key.startswith("loss_rank") else None
        drawn = {name: _read_series(log, key, factor) for name, log in logs.items()}
        if not any(drawn.values()):
            continue
        name = f"training {len(titles)}"
        titles[name] = title
        shown = _new_figure(name, height=260, tools="pan,box_zoom,reset", x_axis_label="epoch", active_drag=None)
        shown.xaxis.ticker.mantissas, shown.xaxis.ticker.min_interval = [1, 2, 5], 1
        for encoder, series in drawn.items():
            number = names.index(encoder)
            color, dash = COLORS[number], [*DASHES.values()][number]
            if series:
                line = _draw_line(shown, series, encoder, color=color, line_dash=dash, line_width=2)
                tooltips = [("encoder", "@name"), ("epoch", "@x"), (title, "@y")]
                shown.add_tools(HoverTool(renderers=[line], tooltips=tooltips))
            if chance and (level := _read_series(logs[encoder], chance, 1)):
                _draw_line(shown, level, encoder, color=color, line_dash="dotted", line_width=1, alpha=0.8)
        document.add_root(shown)
    return titles


def _read_series(log: list[dict], key: str, factor: float) -> list[tuple[float, float]]:
    return [(record["epoch"], factor * record[key]) for record in log if record.get(key) is not None]


def _draw_line(shown, series: list[tuple[float, float]], name: str, **how):
    from bokeh.models import ColumnDataSource

    x, y = zip(*series, strict=True)
    source = ColumnDataSource({"x": x, "y": y, "name": [name] * len(x)})
    if len(x) == 1:
        return shown.scatter("x", "y", source=source, color=how["color"], size=6)
    return shown.line("x", "y", source=source, **how)


def draw_matrices(
    document, tables: Sequence[np.ndarray], titles: Sequence[str], low: float, first: int = 0
) -> dict[str, str]:
    """Draw matrices [C, C] in one scale of colors from `low` to 1, "matrix N" from N = first on; returns titles.
    Of differences, from -1, the colors diverge. page.js names the pair below the pointer.
    """
    from bokeh.models import CustomJS, LinearColorMapper
    from bokeh.palettes import Cividis256, RdBu11, interp_palette

    colors = LinearColorMapper(palette=interp_palette(RdBu11, 256) if low == -1 else Cividis256, low=low, high=1)
    found = {}
    for number, (title, table) in enumerate(zip(titles, tables, strict=True), first):
        name, n = f"matrix {number}", len(table)
        how = dict(x_range=(0, n), y_range=(n, 0), tools="wheel_zoom,pan,reset", active_drag=None, height=400)
        shown = _new_figure(name, **how)
        shown.image([table.astype(np.float32)], x=0, y=0, dw=n, dh=n, color_mapper=colors, name="table")
        shown.axis.visible = shown.grid.visible = False
        shown.toolbar_location = None
        for event in ("mousemove", "tap"):
            shown.js_on_event(event, CustomJS(code=f"report.onPair(cb_obj, '{event}')"))
        document.add_root(shown)
        found[name] = title
    return found


def draw_outliers(document, found: dict[str, Detection], names: Sequence[str]) -> None:
    """Draw for each encoder a histogram "ood 0" and on; the ROC curves of all as "roc"."""
    from sklearn.metrics import roc_curve

    roc = _new_figure(
        "roc", height=400, tools="pan,box_zoom,reset", active_drag=None, x_range=(0, 100), y_range=(0, 101)
    )
    roc.xaxis.axis_label, roc.yaxis.axis_label = "OOD items taken for ID, in %", "ID items kept, in %"
    roc.line([0, 100], [0, 100], color=GRAY, line_dash="dotted")
    for name, of in found.items():
        number = names.index(name)
        low = min(np.percentile(s, 2) for s in (of.inlier, of.outlier))
        high = max(np.percentile(s, 98) for s in (of.inlier, of.outlier))
        edges = np.linspace(low, high if high > low else low + 1, 41)
        shown = _new_figure(f"ood {number}", height=260, tools="", x_axis_label="score", y_axis_label="share in %")
        shown.toolbar_location = None
        for scores, label, pattern in ((of.inlier, "ID", " "), (of.outlier, "OOD", "/")):
            counts, _ = np.histogram(scores.clip(edges[0], edges[-1]), edges)
            color = COLORS[number] if label == "ID" else GRAY
            shown.quad(
                bottom=0, top=100 * counts / len(scores), left=edges[:-1], right=edges[1:], fill_color=color,
                line_color=color, fill_alpha=0.5, hatch_pattern=pattern, hatch_color=color, legend_label=label,
            )  # fmt: skip
        shown.vspan(x=float(np.clip(of.threshold, edges[0], edges[-1])), line_color=GRAY, line_dash="dashed")
        shown.legend.background_fill_alpha, shown.legend.border_line_color = 0, None
        shown.legend.location = "top_left"  # the scores of ID items are the larger ones
        document.add_root(shown)
        truth = np.r_[np.ones(len(of.inlier)), np.zeros(len(of.outlier))]
        fpr, tpr, _ = roc_curve(truth, np.r_[of.inlier, of.outlier])
        points = np.unique(np.linspace(0, len(fpr) - 1, min(500, len(fpr))).astype(int))
        series = list(zip((100 * fpr[points]).tolist(), (100 * tpr[points]).tolist(), strict=True))
        _draw_line(roc, series, name, color=COLORS[number], line_dash=[*DASHES.values()][number], line_width=2)
    document.add_root(roc)
