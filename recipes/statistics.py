"""Statistics over the seeds of a table."""

import numpy as np


def spreads(n: int) -> float:
    """Half the width of the two-sided 95 % interval of a mean of n >= 2 figures, in standard deviations (n - 1)."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1) / np.sqrt(n))


def paired_difference(a, b) -> tuple[float, float]:
    """Mean of a - b over n >= 2 pairs, and the half width of its two-sided 95 % interval.

    a, b: n figures each, pair by pair. The interval is Student's for paired samples: t(0.975, n - 1) standard
    deviations (n - 1) of the differences, over sqrt(n).
    """
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return float(differences.mean()), spreads(len(differences)) * float(differences.std(ddof=1))
