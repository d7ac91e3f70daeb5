"""What only the compiled CPU backend promises: instruction sets, any number of threads, one thread pool, accuracy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast import _cpu
from gwf_fast.kernels.cpp import pairs as cpp
from gwf_fast.kernels.reference import pairs as reference
from gwf_fast.kernels.table import profiles
from tests.cases import TOLERANCE, error

PROFILES = list(profiles.PROFILES.values())
ISAS = _cpu.instruction_sets()


def spec(profile: profiles.Profile, bandwidth: float = 0.9, coefficient: float = 0.7) -> tuple[float, ...]:
    return (PROFILES.index(profile), coefficient, bandwidth if profile.scaled else 1.0, profile.test_parameter or 0.0)


@pytest.fixture
def instruction_set(request):
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(before)


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def reductions(x, y, w, profile, **options):
    """Every reduction that the profile has, as (name, kind of tolerance, function of the backend module)."""
    k = spec(profile)
    channels = torch.stack([w, 1 - w, w * w], -1)
    rows = [
        ("sum", "value", lambda m, t: m.pair_sum(t(x), t(y), t(channels), k, **options)),
        ("one channel", "value", lambda m, t: m.pair_sum(t(x), t(y), t(w)[..., None], k, **options)),
        ("gradient", "gradient", lambda m, t: m.pair_gradient(t(x), t(y), t(w), k, **options)),
        (
            "both",
            "gradient",
            lambda m, t: torch.cat([v.flatten() for v in m.pair_sum_gradient(t(x), t(y), t(w), k, **options)]),
        ),
    ]
    if profile.positive:
        beta = w.log()
        rows += [
            ("logsumexp", "value", lambda m, t: m.pair_logsumexp(t(x), t(y), t(beta), k, **options)),
            ("average", "gradient", lambda m, t: m.pair_average(t(x), t(y), t(channels), t(beta), k, **options)[0]),
            ("mean shift", "gradient", lambda m, t: m.pair_average(t(x), t(y), None, None, k, **options)[0]),
        ]
    return rows


def cloud(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, dim, generator=generator, dtype=torch.float64) / dim**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 19])
@pytest.mark.parametrize("instruction_set", ISAS, indirect=True)
def test_every_instruction_set(instruction_set, dim, dtype):
    """Ragged sizes that leave part of a tile and of a panel empty; the float64 reference sees the rounded inputs."""
    x, y = cloud(61, dim).to(dtype), cloud(203, dim, seed=1).to(dtype)
    w = torch.rand(2, 203, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype) + 0.1
    for profile in PROFILES:
        for name, kind, call in reductions(x, y, w, profile):
            want = call(reference, lambda t: t.double())
            assert error(call(cpp, lambda t: t), want) < TOLERANCE[kind, dtype], (profile.name, name)


@pytest.mark.parametrize("instruction_set", ISAS, indirect=True)
@pytest.mark.parametrize("dim", [2, 3, 9])
def test_symmetric_sums(instruction_set, dim):
    """A set with itself takes another path: each pair once. Sizes around whole blocks of columns."""
    for n in (384, 385, 500):
        x = cloud(n, dim).float()
        w = torch.rand(2, n, generator=torch.Generator().manual_seed(3)) + 0.1
        for profile in PROFILES:
            for exclude in (False, True):
                for name, kind, call in reductions(x, x, w, profile, exclude_self=exclude)[1:4]:
                    want = call(reference, lambda t: t.double())
                    got = call(cpp, lambda t: t)
                    assert error(got, want) < TOLERANCE[kind, torch.float32], (profile.name, name, n, exclude)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_columns_in_pieces(dim):
    """A row breathes after every 32 chunks of columns; what is left is the last piece."""
    x, y = cloud(3, dim), cloud(32 * 384 + 7, dim, seed=1)
    w = torch.rand(2, y.shape[1], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    k = spec(profiles.PROFILES["gaussian"])
    cpp.pair_sum(x, y.roll(5, 1), None, k)  # what lies beyond the columns is no zeros
    for name in ("pair_sum", "pair_gradient"):
        weights = w[..., None] if name == "pair_sum" else w
        want = getattr(reference, name)(x, y, weights, k)
        assert error(getattr(cpp, name)(x, y, weights, k), want) < 1e-13, name


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_of_float32_in_double(order):
    """A bandwidth of which float32 has no curvature: all directions come along, of every channel."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    x, y, a, b = draw(2, 9, 3), draw(2, 14, 3), draw(2, 9, 3), draw(2, 14, 3)
    tangents = [(draw(2, 9, 3), draw(2, 14, 3), draw(2, 9, 3), draw(2, 14, 3)) for _ in range(order)]
    k = spec(profiles.PROFILES["imq"], bandwidth=1e-9)
    got = cpp.pair_jet(x, y, a, b, None, None, tangents, k)
    wide: list[Any] = [tuple(t.double() for t in tangent) for tangent in tangents]
    want = reference.pair_jet(x.double(), y.double(), a.double(), b.double(), None, None, wide, k)
    for mine, truth in zip(got, want, strict=True):
        assert error(mine, truth) < 1e-6


@pytest.mark.parametrize("dim", [2, 3, 5, 16])
def test_results_do_not_depend_on_the_number_of_threads(dim, restored_threads):
    x, y = cloud(3000, dim).float(), cloud(2500, dim, seed=1).float()
    w, self_w = torch.rand(2, 2500) + 0.1, torch.rand(2, 3000) + 0.1
    calls = [row[2] for row in reductions(x, y, w, profiles.PROFILES["gaussian"])]
    calls += [row[2] for row in reductions(x, x, self_w, profiles.PROFILES["laplace"])[1:4]]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([call(cpp, lambda t: t) for call in calls])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_threads_follow_torch(restored_threads):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert _cpu.threads() == threads


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps to read the loaded libraries from")
def test_one_thread_pool_with_torch():
    """A fresh process that computes with both has one OpenMP runtime (another package may bring its own)."""
    code = (
        "import torch, gwf_fast as gwf\n"
        "x = torch.randn(5000, 2); gwf.kernel_sum(x, x, kernel=gwf.Gaussian(1.0)); x @ x.T\n"
        "print(open('/proc/self/maps').read())"
    )
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len(set(re.findall(r"\S*libgomp\S*", maps))) == 1


@pytest.mark.parametrize("profile", [p for p in PROFILES if p.positive], ids=lambda p: p.name)
@pytest.mark.parametrize("instruction_set", ISAS, indirect=True)
def test_log_sums_far_from_the_data(instruction_set, profile):
    """Where every k underflows, and where columns come in an order that moves the running reference up and down."""
    y = torch.linspace(-40, 40, 700, dtype=torch.float64)[None, :, None]
    for order in (
        slice(None),
        torch.arange(699, -1, -1),
        torch.randperm(700, generator=torch.Generator().manual_seed(0)),
    ):
        sources = y[:, order].contiguous()
        x = torch.tensor([-300.0, -41.0, 0.0, 39.9, 300.0], dtype=torch.float64)[None, :, None]
        want = reference.pair_logsumexp(x, sources, None, spec(profile))
        assert error(cpp.pair_logsumexp(x, sources, None, spec(profile)), want) < 1e-13
        got = cpp.pair_logsumexp(x.float(), sources.float(), None, spec(profile))
        assert error(got, want) < 2e-6
        mean = reference.pair_average(x, sources, None, None, spec(profile))[0]
        assert (cpp.pair_average(x, sources, None, None, spec(profile))[0] - mean).abs().max() < 1e-9


def test_columns_without_weight():
    """log-weights of -inf are weights of 0, also where they come first or are all there is."""
    x, y = cloud(5, 2), cloud(300, 2, seed=1)
    beta = torch.full((2, 300), -torch.inf, dtype=torch.float64)
    k = spec(profiles.PROFILES["gaussian"])
    assert torch.equal(cpp.pair_logsumexp(x, y, beta, k), torch.full((2, 5), -torch.inf, dtype=torch.float64))
    assert cpp.pair_average(x, y, None, beta, k)[0].isnan().all()
    beta[:, 250:] = 0.3
    want = reference.pair_logsumexp(x, y[:, 250:].contiguous(), beta[:, 250:].contiguous(), k)
    assert error(cpp.pair_logsumexp(x, y, beta, k), want) < 1e-13


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("dim", [2, 9])
def test_non_finite_and_huge_coordinates(bad, dim):
    """A bad row spoils itself only. At infinity a decaying kernel is 0; NaN propagates, as in PyTorch."""
    x, y = cloud(100, dim).float(), cloud(150, dim, seed=1).float()
    k = spec(profiles.PROFILES["gaussian"])
    clean = cpp.pair_sum(x, y, None, k)
    x[0, 3, 0] = bad
    got = cpp.pair_sum(x, y, None, k)
    others = torch.ones(2, 100, dtype=torch.bool)
    others[0, 3] = False
    assert torch.allclose(got[others], clean[others], rtol=1e-5)
    assert got[0, 3].isnan() if bad != bad else got[0, 3] == 0
    y[1, 7, 1] = bad
    got = cpp.pair_sum(x, y, None, k)
    if bad != bad:
        assert got[1].isnan().all()
    else:
        assert got[1].isfinite().all()


@pytest.mark.parametrize("dim", [2, 9])
@pytest.mark.parametrize("instruction_set", ISAS, indirect=True)
def test_values_below_the_normal_numbers_are_0(instruction_set, dim):
    """Narrow kernels are then as fast as wide ones: arithmetic on denormal numbers is a hundred times slower."""
    x = torch.zeros(1, 4000, dim)
    x[0, :, 0] = torch.linspace(5, 120, 4000)  # exponentials leave the normal numbers at r = 13.2 to 87
    origin, smallest = torch.zeros(1, 1, dim), torch.finfo(torch.float32).tiny
    for name in ("gaussian", "laplace", "matern32", "matern52"):
        k = (PROFILES.index(profiles.PROFILES[name]), 1.0, 1.0, 0.0)
        for out in (cpp.pair_sum(x, origin, None, k), cpp.pair_gradient(x, origin, torch.ones(1, 1), k)):
            size = out.flatten(2).norm(dim=2) if out.ndim == 3 else out
            assert (size > 0).any() and (size == 0).any(), name
            assert not ((out != 0) & (out.abs() < smallest)).any(), name


def test_memory_of_a_sum_is_linear():
    """A million sources in a fresh process: packed columns and one tile a thread, never N x M."""
    code = (
        "import resource, torch, gwf_fast as gwf\n"
        "x = torch.randn(2000, 2); y = torch.randn(1_000_000, 2); k = gwf.Gaussian(0.5)\n"
        "gwf.kernel_sum(x[:64], y[:64], kernel=k)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "gwf.kernel_sum(x, y, kernel=k)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 64 * 1024


def test_unknown_instruction_set_names_the_known_ones():
    with pytest.raises(ValueError, match=r"avx1024.*baseline"):
        _cpu.use_instruction_set("avx1024")


def test_the_table_numbers_profiles_as_the_compiled_code_does():
    header = Path(__file__).resolve().parents[2] / "csrc" / "pairwise" / "profiles_generated.h"
    names = re.findall(r'name = "(\w+)"', header.read_text())
    assert names == [profile.name for profile in PROFILES]
    assert gwf.Gaussian(1.0).spec[0] == names.index("gaussian")
