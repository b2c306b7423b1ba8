"""Shards, and a cache folder of each test's own."""

import made_shards
import pytest


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """The cache folder."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RINCE_CACHE", str(place))
    return place


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folders of made_shards.make_all."""
    root = tmp_path_factory.mktemp("made")
    made_shards.make_all(root)
    return root
