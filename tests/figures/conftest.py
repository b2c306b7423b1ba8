"""What tests of pictures share."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def kept(monkeypatch):
    """The figures that are drawn, in the place of files."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: found.append(figure))
    return found
