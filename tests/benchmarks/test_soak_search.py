"""The soak of searches in small, and that it sees what it looks for."""

from __future__ import annotations

import asyncio
import copy

import pytest

from agentrl.errors import IsolationError
from benchmarks import soak_search as soak

N = 20


@pytest.fixture(scope="module")
def calm():
    try:
        return asyncio.run(soak.calm(N))
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")


def wrong(trees, calm, folder, mode="alone"):
    return [w.removeprefix(f"{mode}: ") for w in soak.faults(mode, trees, calm[mode], folder)]


def test_searches_come_through_an_engine_that_fails(tmp_path, calm, monkeypatch):
    monkeypatch.setattr(soak, "FAILS", 0.02)
    monkeypatch.setattr(soak, "KILL_S", (600, 600))
    lives = 0
    wanted = {mode: soak.number_of(mode, N) for mode in soak.MODES}
    assert sum(wanted.values()) == N
    while any(soak.done(tmp_path / mode / "trees") < n for mode, n in wanted.items()):
        asyncio.run(soak.faulty(N, tmp_path, seed=lives))
        lives += 1
        assert lives < 20
    for mode in soak.MODES:
        assert wrong(soak.records(tmp_path / mode / "trees"), calm, tmp_path / mode, mode) == []
    assert "engine" in (tmp_path / "faults").read_text()


def test_the_soak_sees_what_is_lost_doubled_or_changed(tmp_path, calm):
    first, *others = calm["alone"]
    assert wrong([first, *others], calm, tmp_path) == []
    assert wrong(others, calm, tmp_path) == ["('alone-0', 0) is lost"]
    assert wrong([first, first, *others], calm, tmp_path) == ["('alone-0', 0) is stored 2 times"]
    spoilt = copy.deepcopy(first)
    spoilt.meta["search"]["states"][0]["full"] += 1
    spoilt.meta["search"]["tokens"] += 1
    found = " ".join(wrong([spoilt, *others], calm, tmp_path))
    for what in ("visits at its root", "tokens and counts", "not what it is without faults"):
        assert what in found
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "x.json").touch()
    assert wrong([first, *others], calm, tmp_path) == ["x.json is left"]
