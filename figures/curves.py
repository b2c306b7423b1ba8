"""Draws what the evaluations measured: score histograms with their ROC curve, and precision over recall."""

from pathlib import Path

import numpy as np

import figures

INLIER, OUTLIER, GRAY = "#0072B2", "#D55E00", "#777777"  # told apart by color-blind readers
COLORS = (INLIER, OUTLIER, "#009E73", "#CC79A7")
DASHES = ("-", "--", ":", "-.")


def draw_ood(path: Path, inlier, outlier, metrics: dict, title: str, score_name: str) -> None:
    """Histograms of inlier scores [n] and outlier scores [m] on the left, their ROC curve on the right.

    metrics: those of evaluation.ood_metrics, in percent. The outermost bins hold all scores beyond the axis.
    """
    from sklearn.metrics import roc_curve

    plt = figures.pyplot()
    inlier, outlier = np.asarray(inlier, float), np.asarray(outlier, float)
    low = min(np.percentile(s, 2) for s in (inlier, outlier))
    high = max(np.percentile(s, 98) for s in (inlier, outlier))
    high = high if high > low else low + 1
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for scores, color, name in ((inlier, INLIER, "inliers"), (outlier, OUTLIER, "outliers")):
        left.hist(
            scores.clip(low, high), bins=np.linspace(low, high, 51), weights=np.full(len(scores), 100 / len(scores)),
            color=color, alpha=0.55, label=f"{name} ({len(scores):,})",
        )  # fmt: skip
    left.set(xlabel=f"{score_name}\nthe outer bars hold all beyond", ylabel="share of the images in %", title=title)
    left.legend(frameon=False)
    truth = np.r_[np.ones(len(inlier)), np.zeros(len(outlier))]
    fpr, tpr, _ = roc_curve(truth, np.r_[inlier, outlier], drop_intermediate=False)
    right.plot(100 * fpr, 100 * tpr, color=INLIER, lw=2)
    right.plot([0, 100], [0, 100], color=GRAY, lw=1, ls=":")
    at = (tpr >= 0.95).argmax()  # where FPR95 is taken; of scores that tie, above 95
    right.plot(100 * fpr[at], 100 * tpr[at], "o", color=OUTLIER, clip_on=False)
    right.set(
        xlabel="OOD images accepted in %", ylabel="ID images accepted in %", xlim=(0, 100), ylim=(0, 101),
        title=f"AUROC {metrics['AUROC']:.2f}, FPR95 {metrics['FPR95']:.2f} (dot)",
    )  # fmt: skip
    figures.save(figure, path)


def draw_precision_recall(path: Path, curves: dict, title: str) -> None:
    """curves: name -> (precision [G], recall [G], AP): the mean over the queries at every cut-off."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
    for i, (name, (precision, recall, ap)) in enumerate(curves.items()):
        recall, precision = 100 * np.asarray(recall), 100 * np.asarray(precision)
        style = {"color": COLORS[i % len(COLORS)], "ls": DASHES[i // len(COLORS) % len(DASHES)]}
        axes.plot(recall, precision, lw=2, label=f"{name}: AP {100 * ap:.1f}", **style)
    axes.set(xlabel="recall in %", ylabel="precision in %", xlim=(0, 100), ylim=(0, 101), title=title)
    axes.legend(frameon=False, loc="lower left")
    figures.save(figure, path)


def draw_nearness(path: Path, near, auroc, found: dict, ranking: str, title: str) -> None:
    """AUROC in percent of each outlier class over its largest similarity to a training class, both [O]; six are named.

    found: "Spearman" and "p" of both, None where unknown, and "classes" by name.
    """
    plt = figures.pyplot()
    near, auroc = np.asarray(near, float), np.asarray(auroc, float)
    there = ~np.isnan(auroc)  # classes without images have none
    near, auroc, names = near[there], auroc[there], list(found["classes"])
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    x, values = near.copy(), np.unique(near)
    few = len(values) < 6
    if few:  # points of one value side by side, their median as a bar
        width = 0.3 * (np.diff(values).min() if len(values) > 1 else 1)
        for value in values:
            tied = np.flatnonzero(near == value)
            x[tied[np.argsort(auroc[tied])]] += width * (np.arange(len(tied)) % 5 - 2) / 4 * (len(tied) > 1)
            ends = value - 0.7 * width, value + 0.7 * width
            axes.hlines(np.median(auroc[tied]), *ends, color=OUTLIER, lw=2, zorder=1)
        axes.set_xticks(values)
    axes.plot(x, auroc, "o", ms=5, mfc=INLIER, mec="white", mew=0.5)
    axes.axhline(50, color=GRAY, lw=1, ls=":")
    hardest_first = np.argsort(auroc, kind="stable").tolist()
    named = sorted({*hardest_first[:3], *hardest_first[-3:]})
    wide, high = 0.15 * max(np.ptp(x), 1e-9), 0.06 * max(np.ptp(auroc), 1e-9)
    for i in named:
        beside = any(0 <= x[j] - x[i] < wide and abs(auroc[j] - auroc[i]) < high for j in named if j != i)
        place = dict(xytext=(-5, 3), ha="right") if beside else dict(xytext=(5, 3))
        axes.annotate(names[i].replace("_", " "), (x[i], auroc[i]), textcoords="offset points", fontsize=8, **place)
    rho = "" if found["Spearman"] is None else f"Spearman {found['Spearman']:.2f}, p {found['p']:.2g}, "
    axes.set(
        xlabel=f"largest similarity to a training class, by {ranking}", ylabel="AUROC of the class in %",
        title=f"{title}\n{rho}{len(names)} OOD classes" + ("; bar: median" if few else ""),
    )  # fmt: skip
    axes.margins(x=0.12)
    figures.save(figure, path)
