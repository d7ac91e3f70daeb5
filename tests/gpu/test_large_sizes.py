"""Sizes beyond 2^31 pairs, rows and bytes, which no machine here holds: grids and arguments, on meta tensors."""

import math

import pytest
import torch

pytest.importorskip("triton")
from gwf_fast.kernels.triton import combine, launch, packing, wide, wide_packing
from gwf_fast.kernels.triton import pairs as backend
from gwf_fast.kernels.triton import pairs as module

SPEC = (0.0, 1.0, 1.0, 0.0)
LARGEST_GRID = 2**31 - 1

CALLS = {
    "sum": lambda x, y, w: module.pair_sum(x, y, w[..., None], SPEC),
    "gradient": lambda x, y, w: module.pair_gradient(x, y, w, SPEC),
    "logsumexp": lambda x, y, w: module.pair_logsumexp(x, y, w, SPEC),
    "average": lambda x, y, w: module.pair_average(x, y, None, w, SPEC)[0],
    "jet": lambda x, y, w: module.pair_jet(x, y, x, y, None, w, [(x, y, x, y)], SPEC)[0],
    "mmd": lambda x, y, w: module.mmd_rows(x, y, x[..., 0], w, x.new_ones(x.shape[0], 2), SPEC)[4],
}


@pytest.fixture
def launches(monkeypatch):
    """(kernel, grid, arguments by name) of every launch; nothing runs."""
    found = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def call(*arguments, **constants):
                found.append((grid[0], dict(zip(self.kernel.arg_names, arguments, strict=False)) | constants))

            return call

    for owner in (backend, combine, packing, wide, wide_packing):
        for name, kernel in list(vars(owner).items()):
            if "kernel" in name and hasattr(kernel, "arg_names"):
                monkeypatch.setattr(owner, name, Recorder(kernel))
    monkeypatch.setattr(launch, "check_device", lambda x: None)
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
    return found


@pytest.mark.parametrize(
    ("batch", "n", "m"), [(1, 2**16, 2**16), (1, 2**33 + 5, 2**31 + 7), (3, 7, 2**34 + 1), (2**16, 2**16, 100)]
)
@pytest.mark.parametrize("dim", [2, 17])
@pytest.mark.parametrize("name", CALLS)
def test_grid_and_bounds(launches, name, dim, batch, n, m):
    x, y, w = (torch.empty(shape, device="meta") for shape in ((batch, n, dim), (batch, m, dim), (batch, m)))
    out = CALLS[name](x, y, w)
    assert out.shape[:2] == (batch, n)
    (grid, packed), *passes = launches
    passes = check_combination(passes, batch * n)
    if dim == 2 or name == "jet":
        padded = packed["x_length"], packed["y_length"]
        assert grid == batch * sum(math.ceil(length / packed["BR"]) for length in padded) <= LARGEST_GRID
        ((grid, a),) = passes
        check_few(name, grid, a, batch, n, m)
        return
    rows = 128 * packed["blocks"]
    assert (packed["n"], packed["m"]) == (n, m)
    assert 128 * packed["x_blocks"] >= n
    assert rows - 128 * packed["x_blocks"] >= m
    assert packed["raw"].shape[2] == packed["hi"].shape[1] == packed["norm"].shape[1] == rows
    assert 0 < grid == batch * (rows // packed["BR"]) <= LARGEST_GRID
    assert len(passes) == (8 if name == "mmd" else 2)  # near and far
    for grid, a in passes:
        assert grid == batch * a["n_tiles"] * a["chunks"] * a["splits"] <= LARGEST_GRID
        assert a["n_tiles"] == math.ceil(a["n"] / a["BM"])
        assert math.ceil(a["m"] / a["BN"]) < 2**31  # tiles are counted in 32 bits, positions in 64
        assert {a["n"], a["m"]} <= {n, m}
        if (a["n"], a["m"]) == (7, m):
            assert a["splits"] > 1


def check_combination(passes, rows):
    """The passes over pairs: without the launches that put ranges of columns together, which are checked here."""
    combined = [each for each in passes if "m" not in each[1] and "m_tiles" not in each[1] and "y_tiles" not in each[1]]
    for grid, a in combined:
        counts = [a["count_a"], a["count_b"]] if "count_a" in a else [a["rows"]]
        assert 0 < grid == sum(math.ceil(count / a["BLOCK"]) for count in counts) <= LARGEST_GRID
        assert a["splits"] > 1
        assert "rows" not in a or a["rows"] == rows
    return [each for each in passes if not any(each is other for other in combined)]


def check_few(name, grid, a, batch, n, m):
    row_tiles = a["x_tiles"] + a["y_tiles"] if name == "mmd" else a["n_tiles"]
    assert grid == batch * row_tiles * a.get("chunks", 1) * a["splits"]
    assert 0 < grid <= LARGEST_GRID
    if name == "mmd":
        assert (a["x_tiles"], a["y_tiles"]) == (math.ceil(n / a["BM"]), math.ceil(m / a["BM"]))
        assert a["z"].shape[2] == row_tiles * a["BM"]
        return
    assert (a["n"], a["n_tiles"]) == (n, math.ceil(n / a["BM"]))
    assert a["m_tiles"] == math.ceil(m / a["BN"])
    assert a["m_tiles"] < 2**31  # tiles are counted in 32 bits, positions in 64
    assert a["x"].shape[2] == a["n_tiles"] * a["BM"] >= n
    assert a["y"].shape[2] == a["m_tiles"] * a["BN"] >= m
    if n == 7:
        assert a["splits"] > 1
