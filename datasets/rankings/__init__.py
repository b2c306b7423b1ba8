"""Which classes are similar: one table [C, C] from superclasses, class names, WordNet, features or a file."""

from datasets.rankings.table import (
    ALL,
    Ranks,
    chosen,
    class_similarity,
    source_table,
    summary,
    superclass_labels,
    superclass_table,
    to_similarity,
)

__all__ = [
    "ALL",
    "Ranks",
    "chosen",
    "class_similarity",
    "source_table",
    "summary",
    "superclass_labels",
    "superclass_table",
    "to_similarity",
]
