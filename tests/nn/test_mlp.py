"""The fused perceptron against its nn.Sequential twin, to second order."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import gwf_fast as gwf
from gwf_fast import _cpu
from gwf_fast.kernels.cpp import mlp as mlp_cpp
from gwf_fast.nn.functions import ACTIVATIONS

DTYPES = [torch.float32, torch.float64]
IDS = ["float32", "float64"]
# Relative to the reference in the 2-norm.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}

# Written here and not taken from the package: what PyTorch users would put in an nn.Sequential.
HIDDEN: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "celu": nn.CELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
OUTPUT = {
    None: lambda v: v,
    "square": lambda v: v**2,
    "expm1": torch.expm1,
    ("scaled_sigmoid", 2.5): lambda v: 2.5 / (1 + torch.exp(-v)),
    "kl": lambda v: v,
    "reverse_kl": lambda v: -torch.exp(-v),
    "js": lambda v: math.log(2) - torch.log1p(torch.exp(-v)),
    "pearson": lambda v: v,
    "neyman": lambda v: 1 - torch.exp(-v),
    "squared_hellinger": lambda v: 1 - torch.exp(-v),
    "total_variation": lambda v: torch.tanh(v) / 2,
    ("alpha", 1.5): lambda v: v,
    ("alpha", 0.5): lambda v: 2 - torch.log1p(torch.exp(-v)),
    ("generalized_entropy", 2.0): lambda v: v,
    "tanh": torch.tanh,
    "softplus": lambda v: torch.log1p(torch.exp(v)),
}


def twin(sizes: tuple[int, ...], activation: str = "prelu") -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), HIDDEN[activation]()]
    return nn.Sequential(*layers[:-1])


def pair(sizes, activation="prelu", dtype=torch.float64, output=None, residual=False):
    """A network and its twin with the same parameters, which are not those of a fresh PReLU or residual network."""
    net = gwf.nn.MLP(sizes, activation, output, residual).to(dtype)
    other = twin(sizes, activation).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    other.load_state_dict(net.state_dict())
    return net, other


def error(got: Tensor, want: Tensor) -> float:
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / (want.norm() + 1e-12))


def derivatives(f, x: Tensor, parameters, seed: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """f, the gradients of a random projection, and the gradients of a random projection of those."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [x, *parameters]
    out = f(x)

    def direction(like: Tensor) -> Tensor:  # the same in every dtype
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    g = direction(out).requires_grad_()
    first = torch.autograd.grad(out, inputs, g, create_graph=True)
    total = sum((d * direction(d)).sum() for d in first)
    second = torch.autograd.grad(total, [*inputs, g], materialize_grads=True)  # type: ignore[arg-type]
    return out.detach(), list(first), list(second)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("activation", HIDDEN)
def test_every_activation_is_here(activation):
    assert activation in ACTIVATIONS and len(HIDDEN) == len(ACTIVATIONS)


@pytest.mark.parametrize("activation", HIDDEN)
def test_parameters_are_those_of_the_twin(activation):
    torch.manual_seed(3)
    net = gwf.nn.MLP((2, 7, 5, 3), activation)
    torch.manual_seed(3)
    other = twin((2, 7, 5, 3), activation)
    mine, theirs = net.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    net.load_state_dict(other.state_dict())
    x = torch.randn(6, 2)
    torch.testing.assert_close(net(x), other(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
@pytest.mark.parametrize("activation", HIDDEN)
def test_derivatives_match_the_twin(activation, dtype):
    net, other = pair((5, 17, 33, 3), activation, dtype)
    x = torch.randn(70, 5, dtype=dtype, requires_grad=True)
    got = derivatives(net, x, list(net.parameters()))
    exact = other.double()
    want = derivatives(exact, x.detach().double().requires_grad_(), list(exact.parameters()))
    generous = 20 if dtype == torch.float32 else 1  # the projections cancel
    assert error(got[0], want[0]) < TOLERANCE[dtype]
    for order in (1, 2):
        for mine, theirs in zip(got[order], want[order], strict=True):
            assert mine.shape == theirs.shape
            assert (mine - theirs).norm() < generous * TOLERANCE[dtype] * (theirs.norm() + 1e-3)


@pytest.mark.parametrize("output", OUTPUT, ids=str)
def test_output_activations(output):
    net, other = pair((4, 9, 3), "tanh", output=output)
    x = torch.randn(40, 4, dtype=torch.float64, requires_grad=True)
    got = derivatives(net, x, list(net.parameters()))
    want = derivatives(lambda x: OUTPUT[output](other(x)), x, list(other.parameters()))
    for mine, theirs in zip((got[0], *got[1], *got[2]), (want[0], *want[1], *want[2]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    modules = nn.Sequential.forward(net, x)  # the path of other devices and dtypes
    torch.testing.assert_close(net(x), modules, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("activation", HIDDEN)
def test_gradcheck(activation):
    net, _ = pair((3, 5, 4, 2), activation)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in net.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> Tensor:
        # the fused path with these parameters: functional_call puts them in place of the module's own
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *[p.detach().clone().requires_grad_() for p in net.parameters()])
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


@pytest.mark.parametrize("output", [o for o in OUTPUT if o is not None], ids=str)
def test_gradcheck_of_outputs(output):
    net, _ = pair((2, 4, 2), "silu", output=output, residual=True)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(net, x)
    assert gradgradcheck(net, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
@pytest.mark.parametrize(
    "sizes", [(1, 1), (3, 2), (2, 16, 16, 16, 1), (64, *[128] * 5, 64), (7, 512, 300, 1), (5, *[11] * 9, 2)], ids=str
)
@pytest.mark.parametrize("rows", [0, 1, 13, 700])
def test_sizes(sizes, rows, dtype):
    net, other = pair(sizes, "prelu", dtype)
    x = torch.randn(rows, sizes[0], dtype=dtype, requires_grad=True)
    exact = other.double()
    with torch.no_grad():
        assert error(net(x), exact(x.double())) < TOLERANCE[dtype]
    got = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    point = x.detach().double().requires_grad_()
    want = torch.autograd.grad(exact(point).square().sum(), [point, *exact.parameters()])
    for mine, theirs in zip(got, want, strict=True):
        assert (mine - theirs).norm() <= 5 * TOLERANCE[dtype] * theirs.norm()


def test_float32_is_as_good_as_pytorch():
    """At most twice PyTorch's own error in float32, against float64."""
    net, other = pair((32, 64, 64, 64, 64, 1), "prelu", torch.float32)
    exact = twin((32, 64, 64, 64, 64, 1)).double()
    exact.load_state_dict(net.state_dict())
    x = torch.randn(512, 32)
    gradients = []
    for f, point in ((net, x), (other, x), (exact, x.double())):
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(f(point).sum(), list(f.parameters()))]))
    mine, theirs, truth = gradients
    assert error(mine, truth) < 2 * error(theirs, truth) + 1e-8


def test_residual_starts_as_the_identity_and_adds_its_input():
    x = torch.randn(9, 3)
    assert torch.equal(gwf.nn.MLP((3, 8, 3), residual=True)(x), x)
    net, other = pair((3, 8, 3), "tanh", residual=True)
    x = x.double().requires_grad_()
    got, want = (derivatives(f, x, list(n.parameters())) for f, n in ((net, net), (lambda x: x + other(x), other)))
    for mine, theirs in zip((got[0], *got[1], *got[2]), (want[0], *want[1], *want[2]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_leading_dimensions():
    net, other = pair((3, 6, 2))
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(net(x), other(x))
    torch.testing.assert_close(net(x[0, 0]), other(x[0, 0]))
    torch.testing.assert_close(net(x.mT.contiguous().mT), other(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
def test_value_and_grad(dtype):
    net, other = pair((4, 20, 20, 1), "silu", dtype)
    x = torch.randn(3, 50, 4, dtype=dtype)
    point = x.clone().requires_grad_()
    want = other(point)[..., 0]
    (slope,) = torch.autograd.grad(want.sum(), point)
    for x_, grad in ((x, False), (x, True), (point, True)):
        with torch.set_grad_enabled(grad):
            value, gradient = net.value_and_grad(x_)
        assert value.requires_grad == grad and gradient.requires_grad == grad
        assert value.shape == (3, 50) and gradient.shape == x.shape
        assert error(value, want) < 10 * TOLERANCE[dtype] and error(gradient, slope) < 10 * TOLERANCE[dtype]


@pytest.mark.parametrize("activation", ["prelu", "celu"])
def test_gradient_penalty(activation):
    """The critic's loss of WGAN-GP and its gradient, against plain PyTorch."""
    net, other = pair((3, 16, 16, 1), activation)
    x = torch.randn(40, 3, dtype=torch.float64)

    def loss(f: nn.Module) -> Tensor:
        point = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(f(point).sum(), point, create_graph=True)
        return f(x).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()

    got, want = (torch.autograd.grad(loss(f), list(f.parameters())[:-1]) for f in (net, other))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("activation", HIDDEN)
def test_far_inputs_and_nan(activation):
    net, other = pair((1, 2, 1), activation)
    x = torch.tensor(
        [[-800.0], [-60.0], [-1e-9], [0.0], [1e-9], [60.0], [800.0]], dtype=torch.float64, requires_grad=True
    )
    got, want = (torch.autograd.grad(f(x).sum(), x)[0] for f in (net, other))
    torch.testing.assert_close(net(x), other(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    poisoned = torch.tensor([[1.0], [float("nan")], [2.0]], dtype=torch.float64)
    assert net(poisoned).isnan().flatten().tolist() == [False, True, False]


def test_threads_do_not_matter():
    net, _ = pair((8, 128, 128, 1), "silu", torch.float32)
    x = torch.randn(1500, 8, requires_grad=True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(derivatives(net, x, list(net.parameters())))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip((results[0][0], *results[0][1], *results[0][2]), (other[0], *other[1], *other[2]), strict=True):
            assert torch.equal(a, b)


def test_every_instruction_set_agrees():
    net, other = pair((5, 40, 3), "tanh", torch.float32)
    x = torch.randn(100, 5, requires_grad=True)
    want = derivatives(other, x, list(other.parameters()))
    active = _cpu.instruction_set()
    try:
        for name in _cpu.instruction_sets():
            _cpu.use_instruction_set(name)
            got = derivatives(net, x, list(net.parameters()))
            for mine, theirs in zip((got[0], *got[1], *got[2]), (want[0], *want[1], *want[2]), strict=True):
                assert (mine - theirs).norm() < 1e-5 * (theirs.norm() + 1e-2), name
    finally:
        _cpu.use_instruction_set(active)


def test_opcheck_compile_and_transforms():
    net, other = pair((3, 6, 2), "prelu")
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    parameters = net.parameter_list()
    torch.library.opcheck(torch.ops.gwf_fast.mlp.default, (x, parameters, *net.spec))
    torch.library.opcheck(torch.ops.gwf_fast.mlp_backward.default, (x, parameters, g, True, True, *net.spec))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(
        torch.autograd.grad(compiled(x).square().sum(), [x, *net.parameters()]),
        torch.autograd.grad(other(x).square().sum(), [x, *other.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(torch.func.vmap(net)(x), other(x))
    torch.testing.assert_close(torch.func.jacrev(net)(x[0]), torch.func.jacrev(other)(x[0]))


def test_the_compiled_path_is_taken(monkeypatch):
    calls = []
    for name in ("mlp_forward", "mlp_backward", "mlp_second"):
        original = getattr(mlp_cpp, name)
        monkeypatch.setattr(
            mlp_cpp, name, lambda *a, _name=name, _run=original, **k: calls.append(_name) or _run(*a, **k)
        )
    net, _ = pair((3, 6, 1))
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert calls == ["mlp_forward", "mlp_backward", "mlp_second"]


def test_third_derivatives_raise():
    net, _ = pair((2, 4, 1), "tanh")
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    for loss in (second.sum(), second.sum() + net(x).sum()):
        with pytest.raises(NotImplementedError, match="derivatives of third order"):
            torch.autograd.grad(loss, x)


def test_spectral_norm_and_frozen_parameters():
    net, other = pair((3, 8, 1))
    for f in (net, other):
        torch.manual_seed(5)
        nn.utils.parametrizations.spectral_norm(f[2])
        f[0].weight.requires_grad_(False)
        f.eval()
    x = torch.randn(7, 3, dtype=torch.float64)
    got, want = (torch.autograd.grad(f(x).sum(), [p for p in f.parameters() if p.requires_grad]) for f in (net, other))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_wider_networks_run_as_modules():
    net, other = pair((2, 513, 1), dtype=torch.float32)
    x = torch.randn(4, 2)
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3,),), "sizes must be at least two positive widths, got [3]"),
        (((3, 0, 1),), "sizes must be at least two positive widths"),
        (((3, 4, 1), "gelu"), "activation must be one of identity, relu"),
        (((3, 4, 1), "relu", "prelu"), "output must be None or one of"),
        (((3, 4, 1), "relu", "alpha"), "parameter: the divergence 'alpha' needs one"),
        (((3, 4, 1), "relu", ("square", 2.0)), "output must be None or one of"),
        (((3, 4, 1), "relu", (1, 2)), "output must be a name or a pair (name, number), got (1, 2)"),
        (((3, 4, 1), "relu", None, True), "residual: needs as many outputs as inputs, got sizes [3, 4, 1]"),
    ],
)
def test_bad_networks(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gwf.nn.MLP(*arguments)


def test_bad_inputs():
    net = gwf.nn.MLP((3, 4, 2))
    with pytest.raises(ValueError, match=r"x must have shape \[\*B, 3\] for sizes \[3, 4, 2\], got \[5, 4\]"):
        net(torch.randn(5, 4))
    with pytest.raises(TypeError, match=r"x must have the dtype of the network, torch.float32, got torch.float64"):
        net(torch.randn(5, 3).double())
    with pytest.raises(ValueError, match="value_and_grad: needs a network with one output"):
        net.value_and_grad(torch.randn(5, 3))


@pytest.mark.parametrize("output", OUTPUT, ids=str)
def test_copies(output):
    net = gwf.nn.MLP((3, 4, 2), output=output)
    x = torch.randn(5, 3)
    for other in (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        gwf.nn.MLP(**json.loads(json.dumps(net.config))),
    ):
        other.load_state_dict(net.state_dict())
        assert torch.equal(other(x), net(x))
