"""The operators on GPU backends as PyTorch sees them: tracing with fake CUDA tensors, opcheck, the fused mmd2."""

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import gwf_fast as gwf
from gwf_fast import ops
from gwf_fast.ops import jet as jets

KERNEL = 0.5 * gwf.Gaussian(0.8) + gwf.Laplace(1.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

needs_triton = pytest.mark.skipif(
    gwf.ops.BACKENDS["triton"].absence() is not None, reason=str(gwf.ops.BACKENDS["triton"].absence())
)
BACKENDS = [
    pytest.param("triton", marks=needs_triton),
    pytest.param("keops", marks=pytest.mark.slow),  # compiles each formula for seconds
]


def points(*batch, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 2), (4, 2), (4,))
    values = (torch.randn(*batch, *shape, generator=generator, dtype=torch.float64).to(DEVICE) for shape in shapes)
    return tuple(value.requires_grad_(requires_grad) for value in values)


@needs_triton
def test_fake_cuda_tensors_trace():
    """torch.compile(fullgraph=True) of all functions and operators, on tensors that no device here could hold."""

    def everything(x, y, w):
        options: dict[str, Any] = {"kernel": KERNEL}
        out = gwf.kernel_sum(x, y, w, **options).sum() + gwf.kernel_gradient(x, y, w, **options).sum()
        out = out + gwf.kernel_logsumexp(x, y, w, **options).sum()
        out = out + gwf.kernel_average(x, y, None, w, **options).sum()
        out = out + gwf.kernel_min(x, y, k=2).squared_distances.sum()
        out = out + gwf.mmd2(x, y, kernel=KERNEL) + gwf.energy_distance(x, y)
        out = out + gwf.interaction_energy(x, kernel=KERNEL) + gwf.forward_step(x, 0.1, kernel=KERNEL).sum()
        rows = jets.Options(KERNEL.spec, False, None, None, "triton")
        out = out + sum(part.sum() for part in ops.pair_sum_gradient(x, y, w, *rows))
        tangent = (x, y, None, None)
        for order in range(3):
            gx, ga = jets.jet(x, y, x, y, None, w, [tangent] * order, rows)
            out = out + gx.sum() + ga.sum()
        return out

    seen = set()

    def record(graph, _):
        seen.update(str(node.target).split(".")[1] for node in graph.graph.nodes if "gwf_fast." in str(node.target))
        return graph.forward

    torch.compiler.reset()
    with FakeTensorMode():
        x, y, w = (torch.empty(*shape, device="cuda") for shape in ((2**31, 2), (2**33, 2), (2**33,)))
        out = torch.compile(everything, fullgraph=True, backend=record)(x, y, w)
    assert (out.device.type, out.shape) == ("cuda", ())
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("gwf_fast::pair_")}
    assert seen == {name.split("::")[1] for name in registered}


@pytest.mark.parametrize("name", ["pair_sum", "pair_gradient", "pair_sum_gradient", "pair_logsumexp", "pair_average"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_reductions(backend, name):
    x, y, w = points(2)
    tensors = (x, y, None, w) if name == "pair_average" else (x, y, w)
    lengths = (torch.tensor([5, 2], device=DEVICE), torch.tensor([3, 4], device=DEVICE))
    operator = getattr(torch.ops.gwf_fast, name).default
    torch.library.opcheck(operator, (*tensors, list(KERNEL.spec), False, *lengths, backend))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_jet(backend, order):
    x, y, w = points(2)
    a = torch.ones(2, 5, 1, dtype=torch.float64, device=DEVICE, requires_grad=True)
    tangent = (torch.randn_like(x).requires_grad_(), None, None, torch.ones_like(w[..., None].detach()))
    directions = (*(tangent if order else (None,) * 4), *(None,) * 4)
    arguments = (x, y, a, w[..., None].detach(), None, None, *directions, order)
    torch.library.opcheck(
        torch.ops.gwf_fast.pair_jet.default, (*arguments, list(KERNEL.spec), False, None, None, backend)
    )


@needs_triton
class TestMMD2:
    @staticmethod
    def dense(x, y, a, b, unbiased):
        kxx, kyy, kxy = KERNEL(x, x), KERNEL(y, y), KERNEL(x, y)
        if unbiased:
            n, m = x.shape[-2], y.shape[-2]
            off = [k - torch.diag_embed(k.diagonal(dim1=-2, dim2=-1)) for k in (kxx, kyy)]
            return off[0].sum((-2, -1)) / (n * (n - 1)) + off[1].sum((-2, -1)) / (m * (m - 1)) - 2 * kxy.mean((-2, -1))
        quadratic = lambda u, k, v: (u[..., None, :] @ k @ v[..., None])[..., 0, 0]  # noqa: E731
        return quadratic(a, kxx, a) + quadratic(b, kyy, b) - 2 * quadratic(a, kxy, b)

    @pytest.mark.parametrize(
        ("wanted", "unbiased"),  # the unbiased estimate of dense() has equal weights
        [("x", True), ("xy", True), *((wanted, False) for wanted in ("x", "y", "xy", "b", "xyab", ""))],
    )
    @pytest.mark.parametrize("dim", [2, 17])
    def test_value_and_gradients(self, dim, wanted, unbiased, monkeypatch):
        generator = torch.Generator().manual_seed(dim)
        make = lambda *shape: torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(DEVICE)  # noqa: E731
        values = {"x": make(20, dim) / dim**0.5, "y": make(17, dim) / dim**0.5 + 0.2}
        weights = (make(20).abs() / 20, make(17).abs() / 17)
        values |= dict(zip("ab", weights, strict=True))
        leaves = {name: value.clone().requires_grad_(name in wanted) for name, value in values.items()}
        options = {} if unbiased else {"x_weights": leaves["a"], "y_weights": leaves["b"]}

        from gwf_fast.kernels.triton import pairs as backend
        from gwf_fast.kernels.triton import wide

        launches = []
        few = dim <= 4
        owner, name = (backend, "mmd_kernel") if few else (wide, "wide_sum_kernel")
        monkeypatch.setattr(owner, name, _Counted(getattr(owner, name), launches))
        got = gwf.mmd2(leaves["x"], leaves["y"], kernel=KERNEL, unbiased=unbiased, backend="triton", **options)
        passes = len(launches)
        assert passes == 1 if few else 1 < passes <= 4  # of both sets, for float64 in one way
        truth = {name: value.clone().requires_grad_(name in wanted) for name, value in values.items()}
        want = self.dense(truth["x"], truth["y"], truth["a"], truth["b"], unbiased)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
        if not wanted:
            return
        scale = torch.tensor([1.0, -2.0], device=DEVICE, dtype=torch.float64)
        slopes = torch.autograd.grad((got * scale).sum(), [leaves[name] for name in wanted])
        true = torch.autograd.grad((want * scale).sum(), [truth[name] for name in wanted])
        assert len(launches) == passes  # value and gradient came out of the same
        torch.testing.assert_close(slopes, true, rtol=1e-10, atol=1e-13)

    def test_second_derivatives(self):
        generator = torch.Generator().manual_seed(7)
        x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64).to(DEVICE) for n in (2, 2))
        x.requires_grad_()
        f = lambda x: gwf.mmd2(x, y, kernel=KERNEL, backend="triton")  # noqa: E731
        assert torch.autograd.gradgradcheck(f, (x,))


class _Counted:
    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        self.launches.append(grid)
        return self.kernel[grid]
