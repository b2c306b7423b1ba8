"""Pictures, from records and tensors; `python -m figures.NAME` draws some of them from the command line."""

from types import ModuleType


def pyplot() -> ModuleType:
    """matplotlib.pyplot without a screen, imported where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
