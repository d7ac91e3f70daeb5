"""Few rows and many columns: the rule, and results that do not depend on it."""

import pytest
import torch

from gwf_fast.kernels import occupancy
from gwf_fast.kernels.occupancy import MIN_COLUMNS, WAVES, column_splits
from gwf_fast.selftest import reductions as selftest

pytest.importorskip("triton")
from gwf_fast.kernels.reference import pairs as reference
from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton import pairs as backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("columns", [0, 1, 100, 511, 512, 4096, 10**6, 2**31, 10**11])
@pytest.mark.parametrize("programs", [0, 1, 3, 100, 263, 264, 10**6])
@pytest.mark.parametrize("tile", [16, 32, 128])
def test_rule(programs, columns, tile):
    multiprocessors = 132
    splits = column_splits(programs, columns, tile, multiprocessors)
    tiles = -(-columns // tile)
    assert splits >= 1
    if programs >= WAVES * multiprocessors or columns < 2 * MIN_COLUMNS:
        assert splits == 1
        return
    if programs and columns >= WAVES * multiprocessors * MIN_COLUMNS:  # long enough to fill the device
        assert programs * splits >= 0.9 * WAVES * multiprocessors
    if splits > 1:
        share = -(-tiles // splits)
        assert (splits - 1) * share < tiles <= splits * share  # as the kernels cut: every range has a tile
        assert programs * splits <= 2 * WAVES * multiprocessors
        assert share * tile >= MIN_COLUMNS - tile


@pytest.fixture
def eight_multiprocessors(monkeypatch):
    """As if on a small GPU: the interpreter itself has one."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 8)


LARGE = [
    selftest.Case(operation, profiles, (2, 5, 1300, dim), dtype, exclude_self=exclude, ragged=ragged)
    for operation in ("sum", "sum_gradient", "logsumexp", "average", "jet1")
    for profiles, dim, dtype, exclude, ragged in (
        (("gaussian",), 2, torch.float32, False, False),
        (("gaussian", "laplace"), 3, torch.float64, True, True),
        (("gaussian",), 6, torch.float32, False, False),
    )
    if dim != 6 or operation != "jet1"  # minutes under the interpreter, and the same arithmetic
]


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_splits_match_reference(case, eight_multiprocessors, monkeypatch):
    used = []
    for kind in (backend.Pairs, backend.WidePairs):
        monkeypatch.setattr(kind, "splits", lambda *a, rule=kind.splits: used.append(rule(*a)) or used[-1])
    if case.ragged:  # lengths of the case list are for its own sizes
        inputs = case.inputs(DEVICE)
        assert inputs["options"]["x_lengths"].tolist() == [0, 5]
    assert selftest.error(case, backend, DEVICE) <= selftest.TOLERANCE[case.dtype]
    assert max(used) > 1


def test_mmd_in_splits(monkeypatch):
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 8)
    monkeypatch.setattr(occupancy, "MIN_COLUMNS", 128)
    used = []
    rule = backend.Pairs.splits
    monkeypatch.setattr(backend.Pairs, "splits", lambda self, *a: used.append(rule(self, *a)) or used[-1])
    case = selftest.Case("mmd", ("gaussian", "laplace"), (1, 5, 300, 1), torch.float64, exclude_self=True)
    assert selftest.error(case, backend, DEVICE) <= selftest.TOLERANCE[case.dtype]
    assert used == [2]


def test_averages_far_from_the_data(eight_multiprocessors):
    """Logarithms near -1e6, of which float32 has no fraction left: shares of the ranges must not come from them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(1, 4000, 2, generator=generator).to(DEVICE)
    x = torch.tensor([[[1500.0, 0.0]]], device=DEVICE)
    spec = (0.0, 1.0, 1.0, 0.0)
    mean, total = backend.pair_average(x, y, None, None, spec)
    want, log = reference.pair_average(x.double(), y.double(), None, None, spec)
    assert ((mean.double() - want).norm() / want.norm()) < 1e-3
    torch.testing.assert_close(total.double(), log, rtol=1e-6, atol=0)


def test_repeats_bit_for_bit(eight_multiprocessors):
    case = selftest.Case("sum_gradient", sizes=(1, 5, 1300, 2))
    first, second = (selftest.OPERATIONS["sum_gradient"](backend, case.inputs(DEVICE)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
