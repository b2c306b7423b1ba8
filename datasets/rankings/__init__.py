"""Which classes are similar: one table [C, C] from superclasses, class names, WordNet, features or a file."""

from datasets.rankings.table import (
    ALL,
    Ranks,
    assign_ranks,
    class_similarity,
    find_rows,
    find_similarities,
    load,
    summarize_ranking,
)
from datasets.rankings.taxonomy import Taxonomy, choose_superclasses, list_shipped, number_superclasses, read_shipped

__all__ = [
    "ALL", "Ranks", "Taxonomy", "assign_ranks", "choose_superclasses", "class_similarity", "find_rows",
    "find_similarities", "list_shipped", "load", "number_superclasses", "read_shipped", "summarize_ranking",
]  # fmt: skip
