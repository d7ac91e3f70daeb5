"""What tests of fast sums share."""

from __future__ import annotations

import pytest

from gwf_fast.pairs.fast import sums


@pytest.fixture
def evaluations(monkeypatch):
    """The series that were evaluated: what tells a fast sum from a direct one."""
    seen = []
    original = sums.evaluate

    def spy(u, v, weights, request, planned, *precision):
        seen.append(planned)
        return original(u, v, weights, request, planned, *precision)

    monkeypatch.setattr(sums, "evaluate", spy)
    return seen
