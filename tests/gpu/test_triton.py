"""The Triton backend: on a GPU where there is one, under Triton's interpreter elsewhere."""

import math
import subprocess
import sys

import pytest
import torch

from gwf_fast.kernels.reference import pairs as reference
from gwf_fast.kernels.table.profile_numbers import profile_id
from gwf_fast.selftest import reductions as selftest

pytest.importorskip("triton")
triton_backend = pytest.importorskip("gwf_fast.kernels.triton.pairs")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPEC = (0.0, 1.0, 0.8, 0.0)


@pytest.mark.parametrize("case", list(selftest.cases(half=True)), ids=str)
def test_matches_reference(case):
    assert selftest.error(case, triton_backend, DEVICE) <= selftest.TOLERANCE[case.dtype]


def test_an_error_would_show():
    """The comparison has teeth: a relative error of 1e-5 in one function fails its case."""

    class Wrong:
        @staticmethod
        def pair_sum(*arguments, **options):
            return reference.pair_sum(*arguments, **options) * (1 + 1e-5)

    case = selftest.Case("sum")
    assert selftest.error(case, Wrong, "cpu") > selftest.TOLERANCE[case.dtype]
    assert selftest.error(case, reference, "cpu") <= selftest.TOLERANCE[case.dtype]


@pytest.mark.parametrize("operation", ["sum", "sum_20", "sum_gradient", "average", "average_20"])
@pytest.mark.parametrize("bandwidth", [20.0, 1.0, 1e-3])
def test_near_and_far(operation, bandwidth, monkeypatch):
    """D = 17 within the radius of products of halves, beyond it, and where most pairs are too far to count."""
    case = selftest.Case(operation, sizes=(1, 33, 70, 17), coincident=bandwidth < 1)
    inputs = case.inputs(DEVICE) | {"spec": (0.0, 0.7, bandwidth, 0.0)}
    want = selftest.OPERATIONS[operation](reference, selftest._double(inputs))
    got = selftest.OPERATIONS[operation](triton_backend, inputs)
    for one, truth in zip(got, want) if isinstance(got, tuple) else [(got, want)]:
        scale = truth.norm() if truth.norm() > 0 else 1.0
        assert (one.double() - truth).norm() <= 1e-6 * scale


@pytest.mark.parametrize("profile", ["gaussian", "laplace"])
def test_gradients_keep_their_digits_far_from_the_centre(profile):
    """A spread of 1,000 bandwidths: what is subtracted are the coordinates as they were given, or float64."""
    generator = torch.Generator().manual_seed(5)
    x = 1000.0 * torch.randn(1, 40, 17, generator=generator)
    y = torch.cat([x + torch.randn(x.shape, generator=generator) / 17**0.5, 1000.0 * torch.randn(1, 60, 17)], 1)
    spec = (float(profile_id(profile)), 1.0, 1.0, 0.0)
    got = triton_backend.pair_gradient(x.to(DEVICE), y.to(DEVICE), None, spec).double().cpu()
    want = reference.pair_gradient(x.double(), y.double(), None, spec)
    assert (got - want).norm() <= 3e-7 * want.norm()


def test_kinked_kernels_of_close_pairs():
    """Distances of 1e-6, and of 0, in a cloud of radius 4: float64 products alone would lose them."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(1, 50, 16, generator=generator)
    y = x + 1e-6 * torch.randn(x.shape, generator=generator)
    y[:, ::2] = x[:, ::2]
    for profile in ("laplace", "distance"):
        spec = (float(profile_id(profile)), 1.0, 1.0, 0.0)
        got = triton_backend.pair_gradient(x.to(DEVICE), y.to(DEVICE), None, spec).double().cpu()
        want = reference.pair_gradient(x.double(), y.double(), None, spec)
        assert (got - want).norm() <= 1e-6 * want.norm()


def test_points_at_infinity_reach_their_own_rows_only():
    x, y = torch.zeros(1, 5, 9), torch.randn(1, 7, 9, generator=torch.Generator().manual_seed(7))
    x[0, 1, 3], x[0, 2, 0] = math.nan, math.inf
    value = triton_backend.pair_sum(x.to(DEVICE), y.to(DEVICE), None, (0.0, 1.0, 2.0, 0.0))[0, :, 0].cpu()
    assert value[1].isnan()
    assert value[2] == 0.0
    assert value[[0, 3, 4]].isfinite().all()
    y[0, 0, 0] = math.nan
    assert triton_backend.pair_sum(x.to(DEVICE), y.to(DEVICE), None, SPEC).isnan().all()


@pytest.mark.parametrize("dim", [5, 70])
def test_without_float64_products(dim, monkeypatch):
    """Other GPUs take differences where products of halves lose digits."""
    from gwf_fast.kernels.triton import wide

    monkeypatch.setattr(wide, "has_float64_products", lambda device: False)
    for operation in ("sum", "gradient", "average"):
        case = selftest.Case(operation, ("laplace",), (1, 33, 70, dim), coincident=True)
        assert selftest.error(case, triton_backend, DEVICE) <= selftest.TOLERANCE[case.dtype]


@pytest.mark.parametrize("dim", [2, 70])
@pytest.mark.parametrize("operation", ["sum", "gradient", "logsumexp", "average", "jet1"])
def test_groups_of_tiles(operation, dim, monkeypatch):
    """Columns are added up group by group, of more columns than other tests have."""
    for name, module in list(sys.modules.items()):
        if name.startswith("gwf_fast.kernels.triton.") and hasattr(module, "GROUP"):
            monkeypatch.setattr(module, "GROUP", 2)
    case = selftest.Case(operation, sizes=(1, 20, 330, dim))
    assert selftest.error(case, triton_backend, DEVICE) <= selftest.TOLERANCE[case.dtype]


@pytest.mark.parametrize("precision", ["fp16x3", "ieee", "tf32x3", "tf32"])
def test_precisions(precision):
    case = selftest.Case("gradient", sizes=(1, 33, 70, 17))
    v = case.inputs(DEVICE)
    got = triton_backend.pair_gradient(v["x"], v["y"], v["b"][..., 0], v["spec"], precision=precision).double()
    want = reference.pair_gradient(v["x"].double(), v["y"].double(), v["b"][..., 0].double(), v["spec"])
    assert (got - want).norm() <= (3e-3 if precision == "tf32" else 3e-6) * want.norm()


def test_unknown_precision():
    x = torch.zeros(1, 3, 17, device=DEVICE)
    with pytest.raises(ValueError, match="precision: got 'half', expected one of fp16x3, ieee, tf32x3, tf32"):
        triton_backend.pair_sum(x, x, None, SPEC, precision="half")


def test_nan_stays_in_its_row():
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(1, n, 2, generator=generator).to(DEVICE) for n in (63, 70))
    x[0, 5, 1] = float("nan")
    for out in (
        triton_backend.pair_sum(x, y, None, SPEC)[..., 0],
        triton_backend.pair_gradient(x, y, None, SPEC)[..., 0],
    ):
        assert out.isnan().nonzero().tolist() == [[0, 5]]


def test_garbage_beyond_the_lengths_is_not_read():
    generator = torch.Generator().manual_seed(5)
    for dim in (3, 17):
        x, y = (torch.randn(2, n, dim, generator=generator).to(DEVICE) for n in (33, 70))
        lengths = {
            "x_lengths": torch.tensor([20, 33], device=DEVICE),
            "y_lengths": torch.tensor([70, 41], device=DEVICE),
        }
        clean = triton_backend.pair_sum_gradient(x, y, None, SPEC, **lengths)
        x[0, 20:], y[1, 41:] = float("nan"), float("inf")
        dirty = triton_backend.pair_sum_gradient(x, y, None, SPEC, **lengths)
        for a, b in zip(clean, dirty, strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)


def test_third_tangent_is_refused():
    x = torch.zeros(1, 3, 2, device=DEVICE)
    nothing = (None, None, None, None)
    with pytest.raises(NotImplementedError, match="tangents: got 3"):
        triton_backend.pair_jet(x, x, x, x, None, None, [nothing] * 3, SPEC)


def test_sizes_and_bandwidths_do_not_recompile():
    """What may differ between calls is not part of the compiled kernel: neither sizes, 1 and multiples of 16 included,
    nor bandwidths; profiles are."""
    script = """
import torch
from gwf_fast.kernels.triton import pairs as backend, combine, launch, packing, wide, wide_packing
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
for module in (backend, combine, packing, wide, wide_packing):
    for name, kernel in list(vars(module).items()):
        if "kernel" in name and hasattr(kernel, "arg_names"):
            setattr(module, name, record(kernel))
def calls(n, m, bandwidth, profile=0.0):
    keys.clear()
    for dim in (2, 20):
        x, y, spec = torch.zeros(1, n, dim), torch.zeros(1, m, dim), (profile, 1.0, bandwidth, 0.0)
        backend.pair_sum(x, y, None, spec)
        backend.pair_gradient(x, y, None, spec)
        backend.pair_average(x, y, None, None, spec)
        backend.pair_jet(x, y, x, y, None, None, [], spec)
        backend.mmd_rows(x, y, x[..., 0], y[..., 0], torch.ones(1, 2), spec)
    return list(keys)
base = calls(100, 100, 1.0)
assert len(base) == 30  # a launch packs; with many coordinates two compute, the MMD's four times
sums = set()  # of ranges of columns, which not every size has
for n, m, bandwidth in ((1, 1, 1.0), (16, 100, 2.0), (4096, 128, 0.3), (33, 70000, 1.0), (50, 90000, 2.0)):
    found = calls(n, m, bandwidth)
    assert [key for key in found if key[0] not in ("add_kernel", "combine_kernel")] == base, (n, m, bandwidth)
    sums |= set(found) - set(base)
assert {name for name, _ in sums} == {"add_kernel", "combine_kernel"} and len(sums) <= 8, sums
assert calls(100, 100, 1.0, 1.0) != base
"""
    environment = {"PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a process without the interpreter on CPU tensors")
def test_cpu_tensors_outside_the_interpreter():
    script = """
import torch
from gwf_fast.kernels.triton import pairs as triton
triton.pair_sum(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), None, (0.0, 1.0, 1.0, 0.0))
"""
    environment = {"PATH": "/usr/bin:/bin", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert "ValueError: x: got a tensor on cpu, the triton backend expects a CUDA device" in done.stderr
