"""Triton's perceptrons: on a GPU where there is one, under Triton's interpreter elsewhere."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import gwf_fast as gwf
from gwf_fast import _cpu
from gwf_fast.kernels.cpp import mlp as mlp_cpp
from gwf_fast.kernels.reference import mlp as mlp_reference
from gwf_fast.nn.functions import ACTIVATIONS, output_activation
from gwf_fast.ops import mlp as operators
from gwf_fast.selftest import networks as selftest_networks
from gwf_fast.selftest.networks import OUTPUTS, TOLERANCE, NetworkCase

pytest.importorskip("triton")
triton_mlp = pytest.importorskip("gwf_fast.kernels.triton.mlp")

from gwf_fast.kernels.triton.mlp_functions import FUNCTIONS  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


CASES = [case for case in selftest_networks.cases(half=True) if case.operation != "mlp_objective"]  # composed of "mlp"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case):
    assert selftest_networks.error(case, triton_mlp, DEVICE) <= TOLERANCE[case.dtype]


def test_an_error_would_show():
    class Wrong:
        mlp_forward = staticmethod(lambda *a: mlp_reference.mlp_forward(*a) * (1 + 1e-5))
        mlp_backward = staticmethod(mlp_reference.mlp_backward)

    case = NetworkCase((5, 17, 3), dtype=torch.float32)
    assert selftest_networks.error(case, Wrong, "cpu") > TOLERANCE[case.dtype]  # type: ignore[arg-type]
    assert selftest_networks.error(case, mlp_reference, "cpu") <= TOLERANCE[case.dtype]


@pytest.mark.parametrize("passes", [triton_mlp, mlp_reference, mlp_cpp], ids=lambda m: m.__name__.rsplit(".", 1)[1])
def test_against_the_twin(passes):
    """The reference's own truth: the modules of an nn.Sequential, which share nothing with it."""
    for activation in ACTIVATIONS:
        case = NetworkCase((5, 17, 9, 3), 40, torch.float64, activation)
        x, parameters, cotangent = case.inputs("cpu")
        net = case.network().double()
        point = x.clone().requires_grad_()
        out = torch.nn.Sequential.forward(net, point)
        want = [out, *torch.autograd.grad(out, [point, *net.parameter_list()], cotangent)]
        place = DEVICE if passes is triton_mlp else "cpu"
        x, cotangent, *parameters = (t.to(place) for t in (x, cotangent, *parameters))
        got = passes.mlp_backward(x, parameters, cotangent, case.spec, wants_out=True)
        for mine, theirs in zip((got[0], got[1], *got[2]), want, strict=True):
            torch.testing.assert_close(mine.cpu(), theirs.detach(), rtol=1e-10, atol=1e-12, msg=activation)


def test_every_function_of_a_network_is_here():
    names = {activation.compiled.name for activation in ACTIVATIONS.values()}
    names |= {output_activation(output).compiled.name for output in (*OUTPUTS, ("alpha", 0.5), "kl")}
    assert names == set(FUNCTIONS) == set(mlp_reference.FUNCTIONS)
    assert all(hasattr(_cpu.Function, name) for name in names)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "prelu"])
def test_far_inputs_and_nan(activation):
    x = torch.tensor([-800.0, -60.0, -1e-9, 0.0, 1e-9, 60.0, 800.0, math.nan], dtype=torch.float64)[:, None]
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    spec = gwf.nn.MLP((1, 1), output=activation).spec
    got = triton_mlp.mlp_backward(
        x.to(DEVICE), [one.to(DEVICE), zero.to(DEVICE)], None, spec, wants_out=True, wants_parameters=False
    )
    want = mlp_reference.mlp_backward(x, [one, zero], None, spec, wants_out=True, wants_parameters=False)
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        mine = mine.cpu()
        assert mine[-1].isnan().all() or activation in ("identity", "relu", "leaky_relu")  # a number even there
        torch.testing.assert_close(mine[:-1], theirs[:-1], rtol=1e-12, atol=1e-16)


def test_small_results_keep_their_accuracy():
    x = torch.logspace(-30, 0, 31)[:, None]
    one, zero = torch.ones(1, 1), torch.zeros(1)
    for sign in (1, -1):
        for output in ("expm1", "tanh", "elu", "neyman"):
            spec = gwf.nn.MLP((1, 1), output=output).spec
            got = triton_mlp.mlp_forward((sign * x).to(DEVICE), [one.to(DEVICE), zero.to(DEVICE)], spec).cpu().double()
            want = mlp_reference.mlp_forward(sign * x.double(), [one.double(), zero.double()], spec)
            assert ((got - want) / want).abs().max() < 5e-7, (output, sign)


@pytest.fixture
def everywhere(monkeypatch):
    """Networks on any device take the Triton passes; returns the names of those called."""
    calls = []

    class Passes:
        mlp_forward = staticmethod(lambda *a, **k: calls.append("forward") or triton_mlp.mlp_forward(*a, **k))
        mlp_backward = staticmethod(lambda *a, **k: calls.append("backward") or triton_mlp.mlp_backward(*a, **k))
        mlp_second = staticmethod(lambda *a, **k: calls.append("second") or triton_mlp.mlp_second(*a, **k))

    monkeypatch.setattr(operators, "_kernels", lambda device: Passes)
    return calls


def test_derivatives_through_autograd(everywhere):
    net = gwf.nn.MLP((3, 5, 4, 1), "silu", "js").double().to(DEVICE)
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    names = [name for name, _ in net.named_parameters()]

    def f(x, *values):
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *[p.detach().clone().requires_grad_() for p in net.parameters()])
    assert gradcheck(f, inputs, fast_mode=True)
    assert gradgradcheck(f, inputs, fast_mode=True)
    assert set(everywhere) == {"forward", "backward", "second"}
    everywhere.clear()
    with torch.no_grad():
        value, slope = net.value_and_grad(x)
    assert everywhere == ["backward"]
    (want,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(slope, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(value, net(x)[:, 0].detach(), rtol=1e-12, atol=0)


def test_gradient_penalty(everywhere):
    """A critic's loss with second derivatives in x and the parameters, against plain PyTorch."""
    net = gwf.nn.MLP((3, 16, 16, 1), "prelu").double().to(DEVICE)
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def loss(f):
        point = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(f(point).sum(), point, create_graph=True)
        return f(x).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()

    plain = torch.nn.Sequential(*net)
    got, want = (torch.autograd.grad(loss(f), list(net.parameters())[:-1]) for f in (net, plain))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


def test_runs_are_equal_and_later_launches_add_up(monkeypatch):
    case = NetworkCase((3, 20, 1), 330, torch.float32)
    x, parameters, cotangent = case.inputs(DEVICE)
    runs = [triton_mlp.mlp_backward(x, parameters, cotangent, case.spec) for _ in range(2)]
    assert torch.equal(runs[0][1], runs[1][1])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][2], runs[1][2], strict=True))
    monkeypatch.setattr(triton_mlp._Config, "programs", 2)  # 6 launches instead of 1
    _, dx, gradients = triton_mlp.mlp_backward(x, parameters, cotangent, case.spec)
    assert torch.equal(dx, runs[0][1])
    for mine, theirs in zip(gradients, runs[0][2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
    out = triton_mlp.mlp_forward(x, parameters, case.spec)
    assert torch.equal(out, triton_mlp.mlp_backward(x, parameters, None, case.spec, wants_out=True)[0])


def test_what_is_not_served():
    wide = gwf.nn.MLP((2, 129, 1))
    x = torch.zeros(3, 2, device=DEVICE)
    with pytest.raises(ValueError, match=r"widths up to 128, got \[2, 129, 1\]"):
        triton_mlp.mlp_forward(x, wide.to(DEVICE).parameter_list(), wide.spec)
    mixed = wide.spec._replace(sizes=(2, 4, 4, 1), functions=("tanh", "silu", "identity"))
    with pytest.raises(ValueError, match="one for all hidden layers"):
        triton_mlp.mlp_forward(x, [], mixed._replace(constants=(1.0,) * 3, learned=(False,) * 3))
    assert operators.is_served("cuda", torch.bfloat16, 128)
    assert not operators.is_served("cuda", torch.float32, 129)
    assert not operators.is_served("cpu", torch.bfloat16, 8)
    assert not operators.is_served("mps", torch.float32, 8)


def test_fake_cuda_tensors():
    """What torch.compile asks before there are numbers: shapes and devices of the results."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    net = gwf.nn.MLP((3, 16, 2))
    with FakeTensorMode(), torch.no_grad():
        x, g = torch.empty(5, 3, device="cuda"), torch.empty(5, 2, device="cuda")
        parameters = {name: torch.empty(p.shape, device="cuda") for name, p in net.named_parameters()}
        out = torch.func.functional_call(net, parameters, (x,))
        assert out.shape == (5, 2)
        assert out.device.type == "cuda"
        dx, gradients = torch.ops.gwf_fast.mlp_backward(x, list(parameters.values()), g, True, True, *net.spec)
        assert [t.shape for t in (dx, *gradients)] == [t.shape for t in (x, *parameters.values())]
        assert {t.device.type for t in (dx, *gradients)} == {"cuda"}


def test_depth_widths_and_rows_do_not_recompile():
    """Networks of one padded width share kernels; another activation is another kernel."""
    script = """
import torch
import gwf_fast as gwf
from gwf_fast.kernels.triton import launch, mlp
launch.check_device = lambda x: None
keys = []
def record(kernel):
    class Recorder:
        def __getitem__(self, grid):
            def call(*arguments, **constants):
                from triton.runtime.jit import create_function_from_signature
                from triton.compiler import make_backend
                from triton.backends.compiler import GPUTarget
                binder = create_function_from_signature(
                    kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
                _, specialization, options = binder(*arguments, **constants)
                keys.append((kernel.__name__, str(specialization)))
            return call
    return Recorder()
for name in ("mlp_forward_kernel", "mlp_backward_kernel"):
    setattr(mlp, name, record(getattr(mlp, name)))
def calls(sizes, rows, activation="tanh"):
    keys.clear()
    net = gwf.nn.MLP(sizes, activation)
    x, parameters = torch.zeros(rows, sizes[0]), [p.detach() for p in net.parameter_list()]
    mlp.mlp_forward(x, parameters, net.spec)
    mlp.mlp_backward(x, parameters, torch.zeros(rows, sizes[-1]), net.spec)
    return list(dict.fromkeys(keys))
base = calls((2, 17, 1), 100)
assert len(base) == 2
for sizes, rows in (((1, 32, 32, 32, 32), 1), ((16, 20, 16), 4096), ((32, 18, 32), 33)):
    assert calls(sizes, rows) == base, (sizes, rows)
assert calls((2, 17, 1), 100, "silu") != base
"""
    environment = {"PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGPU:
    def test_networks_take_the_kernels(self, monkeypatch):
        calls = []
        run = triton_mlp.mlp_forward
        monkeypatch.setattr(triton_mlp, "mlp_forward", lambda *a: calls.append(1) or run(*a))
        net = gwf.nn.MLP((3, 16, 1)).cuda()
        x = torch.randn(70, 3, device="cuda")
        torch.testing.assert_close(net(x), torch.nn.Sequential(*net)(x))
        assert calls

    def test_more_tiles_than_one_launch_has(self):
        case = NetworkCase((2, 12, 12, 1), 100_003)
        assert selftest_networks.error(case, triton_mlp, "cuda") <= TOLERANCE[case.dtype]

    def test_compiled(self):
        net = gwf.nn.MLP((3, 16, 16, 1), "silu").cuda()
        x = torch.randn(70, 3, device="cuda", requires_grad=True)
        compiled = torch.compile(net, fullgraph=True)
        got, want = (torch.autograd.grad(f(x).square().sum(), [x, *net.parameters()]) for f in (compiled, net))
        torch.testing.assert_close(got, want)


def test_threads_wait_for_what_others_have_written():
    """The threads of a tile read each other's values in memory, and only a GPU has several: read off the code."""
    stores = 0
    for block in ast.walk(ast.parse(Path(triton_mlp.__file__).with_name("mlp_kernels.py").read_text())):
        body = getattr(block, "body", None)
        lines = [ast.unparse(line) for line in body] if isinstance(body, list) else []
        for line, following in zip(lines, [*lines[1:], ""]):
            if line.startswith("tl.store(buffer"):
                stores += 1
                assert following == "tl.debug_barrier()", line
    assert stores == 4
