"""Pairs of classes: what the ranking says of them, what the encoders learned, and where both differ most."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from figures.ranking import clustered

MOST_CLASSES = 200  # of a matrix: more could not be told apart
MOST_RANKS = 16  # distinct similarities that are ranks, and not a scale


class Pair(NamedTuple):
    """Two classes, and how much their cosine is above their similarity."""

    first: int
    second: int
    similarity: float
    cosine: float


@dataclass(frozen=True)
class Relations:
    """What is known of C classes: names in words, the number of each one's superclass (all 0 without), names of the
    superclasses, [] without, and similarities [C, C] of the ranking, None without.
    """

    names: list[str]
    group_of: list[int]
    groups: list[str]
    similarity: np.ndarray | None

    @property
    def related(self) -> np.ndarray:
        """[C, C] from 0 to 1: how related two classes are, where a frame or a color says so: by the ranking if it has
        few values, else by superclass.
        """
        table = self.similarity
        if table is not None and table.min() >= 0 and len(np.unique(table)) <= MOST_RANKS:
            return table
        group = np.array(self.group_of)
        found = np.where((group[:, None] == group) & bool(self.groups), 0.75, 0.0)
        np.fill_diagonal(found, 1)
        return found


def order_classes(relations: Relations, cosines: np.ndarray) -> np.ndarray:
    """Order the classes that have items: similar ones side by side, superclass by superclass. cosines: [C, C] of the
    first encoder, NaN of a class without items.
    """
    there = np.flatnonzero(~np.isnan(cosines.diagonal()))
    table = cosines if relations.similarity is None else relations.similarity
    order = there[clustered(table[np.ix_(there, there)])]
    return order[np.argsort(np.array(relations.group_of)[order], kind="stable")]


def thin_out(order: np.ndarray, most: int = MOST_CLASSES) -> np.ndarray:
    """Keep at most so many of the classes in order, evenly spread."""
    return order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).astype(int))]


def find_extremes(similarity: np.ndarray, cosines: np.ndarray, most: int = 10) -> tuple[list[Pair], list[Pair]]:
    """Find the pairs whose cosine is most above their similarity [C, C], and most below: too near, and too far."""
    first, second = np.triu_indices(len(similarity), 1)
    apart = (cosines - similarity)[first, second]
    known = np.flatnonzero(~np.isnan(apart))
    order = known[np.argsort(apart[known], kind="stable")]

    def take(chosen) -> list[Pair]:
        places = [(int(first[i]), int(second[i])) for i in chosen]
        return [Pair(a, b, float(similarity[a, b]), float(cosines[a, b])) for a, b in places]

    near, far = order[::-1][:most], order[:most]
    return take(near[apart[near] > 0]), take(far[apart[far] < 0])
