"""Nearest neighbours beside a stable sort of the dense squares in float64, and SciPy's tree."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial import cKDTree

import gwf_fast as gwf
from gwf_fast import _cpu, ops
from tests.cases import points

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
BACKENDS = pytest.mark.parametrize("backend", ["cpp", "torch"])
ROUNDING = {torch.float32: 1.2e-7, torch.float64: 4e-15}  # one of the results; several, the truth's own among them
uses_jvp = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def truth(x, y, k, exclude_self=False):
    """NaN before every number, then by distance, then by index."""
    squares = (x.double()[..., :, None, :] - y.double()[..., None, :, :]).square().sum(-1)
    key = torch.where(squares.isnan(), -1.0, squares)
    if exclude_self:
        key = key + torch.where(torch.eye(x.shape[-2], dtype=torch.bool), math.inf, 0.0)
    indices = key.argsort(dim=-1, stable=True)[..., :k]
    return squares.gather(-1, indices), indices


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request):
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(before)


@DTYPES
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 17, 70])
@pytest.mark.parametrize("k", [1, 3, 64])
def test_every_instruction_set(instruction_set, dim, k, dtype):
    x, y = points(dim=dim, dtype=dtype, batch=(2,))
    squares, indices = gwf.kernel_min(x, y, k=k)
    want, where = truth(x, y, k)
    torch.testing.assert_close(squares.double(), want, rtol=ROUNDING[dtype], atol=0)
    assert torch.equal(indices, where)


@DTYPES
@BACKENDS
def test_the_lowest_index_of_equal_distances(backend, dtype):
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)).to(dtype)
    y = torch.cat([grid, grid.flip(0), grid])
    for k in (1, 5, 70):
        squares, indices = gwf.kernel_min(grid, y, k=k, backend=backend)
        want, where = truth(grid, y, k)
        assert torch.equal(squares.double(), want)
        assert torch.equal(indices, where)


@BACKENDS
def test_a_set_with_itself(backend):
    x, _ = points(n=100, dim=3, dtype=torch.float32)
    x[50:60] = x[:10]
    squares, indices = gwf.kernel_min(x, x, k=2, exclude_self=True, backend=backend)
    want, where = truth(x, x, 2, exclude_self=True)
    torch.testing.assert_close(squares.double(), want, rtol=2e-7, atol=0)
    assert torch.equal(indices, where)
    assert (gwf.kernel_min(x, x, backend=backend).squared_distances == 0).all()


def test_beside_a_tree():
    x, y = points(n=200, m=3000, dim=3, dtype=torch.float64)
    distances, indices = cKDTree(y.numpy()).query(x.numpy(), k=8)
    found = gwf.kernel_min(x, y, k=8)
    torch.testing.assert_close(found.squared_distances.sqrt(), torch.from_numpy(distances), rtol=1e-14, atol=0)
    assert torch.equal(found.indices, torch.from_numpy(indices))


@BACKENDS
@pytest.mark.parametrize("scale", [1e-25, 1e25, 1e-3])
def test_order_of_squares_beyond_the_type(backend, scale):
    """Squares of float32 end at 1e38 and at 1e-45; which source is nearest is known all the same."""
    x, y = (scale * t for t in points(dim=2, dtype=torch.float32))
    y[3] = 0
    squares, indices = gwf.kernel_min(x, y, k=2, backend=backend)
    want, where = truth(x, y, 2)
    assert torch.equal(indices, where)
    assert torch.equal(squares, want.float())


def test_close_to_each_other_and_far_from_the_origin():
    x, y = points(dim=9, dtype=torch.float32, shift=1e3)
    want, where = truth(x, y, 3)
    squares, indices = gwf.kernel_min(x, y, k=3)
    assert torch.equal(indices, where)
    torch.testing.assert_close(squares.double(), want, rtol=2e-7, atol=0)


@BACKENDS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dim", [2, 6])
def test_what_is_not_finite(backend, dim, bad):
    x, y = points(dim=dim, dtype=torch.float32)
    x[5, 0] = y[100, 1] = bad
    squares, indices = gwf.kernel_min(x, y, k=3, backend=backend)
    want, where = truth(x, y, 3)
    assert torch.equal(squares.isnan(), want.isnan())
    assert torch.equal(indices, where)
    assert torch.equal(
        squares.isnan()[:, 0],
        torch.full((63,), math.isnan(bad)).index_fill(0, torch.tensor(5), False) | want.isnan()[:, 0],
    )
    if math.isnan(bad):
        assert squares[5].isnan().all()
        assert squares[:, 0].isnan().all()
        assert not squares[6, 1:].isnan().any()


@BACKENDS
def test_ragged_sets(backend):
    x, y = points(n=20, m=30, dim=3, dtype=torch.float64, batch=(2, 2))
    n, m = torch.tensor([[20, 7], [0, 13]]), torch.tensor([[30, 4], [9, 17]])
    for a in range(2):
        for b in range(2):
            x[a, b, n[a, b] :] = y[a, b, m[a, b] :] = math.nan
    x, y = x.requires_grad_(), y.requires_grad_()
    squares, indices = gwf.kernel_min(x, y, k=4, x_lengths=n, y_lengths=m, backend=backend)
    for a in range(2):
        for b in range(2):
            want, where = truth(x[a, b, : n[a, b]], y[a, b, : m[a, b]], 4)
            torch.testing.assert_close(squares[a, b, : n[a, b]], want)
            assert torch.equal(indices[a, b, : n[a, b]], where)
            assert (squares[a, b, n[a, b] :] == 0).all()
            assert (indices[a, b, n[a, b] :] == -1).all()
    gx, gy = torch.autograd.grad(squares.sum(), (x, y), create_graph=True)
    second = torch.autograd.grad(gx.square().sum() + gy.square().sum(), (x, y))
    assert all(bool(g.isfinite().all()) for g in (gx, gy, *second))


def test_fewer_sources_than_k_where_lengths_are_not_looked_at():
    """As on a GPU, where a look would wait."""
    x, y = points(n=5, m=6, dim=2, dtype=torch.float32, batch=(1,))
    for backend in ("cpp", "torch"):
        squares, indices = ops.pair_nearest(x, y, None, torch.tensor([2]), 4, False, backend)
        assert (indices[..., 2:] == -1).all()
        assert (squares[..., 2:] == math.inf).all()
        assert (indices[..., :2] >= 0).all()


@BACKENDS
@pytest.mark.parametrize("exclude_self", [False, True])
def test_derivatives(backend, exclude_self):
    x, y = (t.requires_grad_() for t in points(n=6, m=6, dim=2, dtype=torch.float64, batch=(2,)))

    def distances(x, y):
        return gwf.kernel_min(x, y, k=2, exclude_self=exclude_self, backend=backend).squared_distances

    assert torch.autograd.gradcheck(distances, (x, y))
    assert torch.autograd.gradgradcheck(distances, (x, y))
    assert torch.autograd.gradcheck(lambda x: distances(x, x * x), (x,))


@uses_jvp
def test_transforms():
    x, y = points(n=6, m=9, dim=2, dtype=torch.float64, batch=(3,))
    want = gwf.kernel_min(x, y, k=2)

    def total(x, y):
        return gwf.kernel_min(x, y, k=2).squared_distances.square().sum()

    mapped = torch.func.vmap(lambda x, y: gwf.kernel_min(x, y, k=2))(x, y)
    assert torch.equal(mapped.indices, want.indices)
    assert torch.equal(mapped.squared_distances, want.squared_distances)
    shared = torch.func.vmap(lambda x: gwf.kernel_min(x, y[0], k=2).indices)(x)
    assert torch.equal(shared[0], want.indices[0])
    hessian = torch.func.hessian(total)(x[0], y[0])
    leaf = x[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(leaf, y[0]), leaf, create_graph=True)
    rows = torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in slope.flatten()])
    torch.testing.assert_close(hessian.flatten(0, 1), rows)
    tangent = torch.func.jvp(lambda x: total(x, y[0]), (x[0],), (y[1, :6],))[1]
    torch.testing.assert_close(tangent, (slope * y[1, :6]).sum().detach())


def test_opcheck():
    x, y = (t.requires_grad_() for t in points(n=5, m=6, dim=2, dtype=torch.float64, batch=(2,)))
    lengths = (torch.tensor([5, 2]), torch.tensor([3, 4]))
    for backend in ("cpp", "torch"):
        for sizes in ((None, None), lengths):
            torch.library.opcheck(torch.ops.gwf_fast.pair_nearest.default, (x, y, *sizes, 2, False, backend))


def test_halves_empty_sets_and_layouts():
    x, y = points(n=7, m=20, dim=3, dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        squares, indices = gwf.kernel_min(x.to(dtype), y.to(dtype))
        assert squares.dtype == dtype
        assert torch.equal(indices, truth(x.to(dtype), y.to(dtype), 1)[1])
    assert gwf.kernel_min(x[:0], y, k=2).indices.shape == (0, 2)
    assert gwf.kernel_min(x.expand(0, 7, 3), y.expand(0, 20, 3), k=2).indices.shape == (0, 7, 2)
    strided = gwf.kernel_min(x.mT.contiguous().mT, torch._neg_view(-y))
    assert torch.equal(strided.indices, gwf.kernel_min(x, y).indices)
    with torch.autocast("cpu", torch.bfloat16):
        assert gwf.kernel_min(x.bfloat16(), y.bfloat16()).squared_distances.dtype == torch.float32


def test_results_do_not_depend_on_threads():
    x, y = points(n=700, m=3000, dim=6, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gwf.kernel_min(x, y, k=5))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


X = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 6}, r"k must be at most the number of sources of y \[2, 5, 3\], 5, got 6"),
        ({"k": 5, "exclude_self": True}, r"k must be at most .* but itself \(exclude_self=True\), 4, got 5"),
        ({"k": 3, "y_lengths": torch.tensor([5, 2])}, r"k must be at most .* y_lengths \[5, 2\], 2, got 3"),
        ({"k": 0}, "k must be a positive integer, got 0"),
        ({"k": 1.5}, "k must be a positive integer, got float 1.5"),
        ({"y": X[:, :0]}, r"k must be at most the number of sources of y \[2, 0, 3\], 0, got 1"),
        ({"y": X[:, :4], "exclude_self": True}, "exclude_self=True needs x and y to be the same set"),
        ({"backend": "keops"}, "backend='keops' can't serve .* not nearest"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        gwf.kernel_min(X, options.pop("y", X), **options)
    assert "\n" not in str(caught.value)
