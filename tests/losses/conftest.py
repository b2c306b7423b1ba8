"""The ways through the loss."""

import math

import pytest

from losses import blocks


@pytest.fixture
def use_head(monkeypatch):
    """Chooses the way through the loss, and gives the temperatures that go with it."""

    def choose(head):
        def wrong(*_):
            raise AssertionError("the fast form asked for the equation")

        if head == "fast":
            monkeypatch.setattr(blocks, "infonce", wrong)
        if head == "log space":
            monkeypatch.setattr(blocks, "FAST_MIN_TAU", math.inf)
        return (0.01, 0.03) if head == "low temperature" else (0.1, 0.6)

    return choose
