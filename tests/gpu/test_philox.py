"""Draws on the device are those of the CPU: Triton (its interpreter where there is no GPU) and integer arithmetic."""

import os
import subprocess
import sys
import types
from typing import Any

import pytest
import torch

from gwf_fast.kernels.reference import philox as philox_reference
from gwf_fast.randomness.draws import DeviceDraws, Draws

pytest.importorskip("triton")
triton_philox = pytest.importorskip("gwf_fast.kernels.triton.philox")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STREAMS = (0, 1, 3, 0x90000001)
SEEDS = (0, 7, (1 << 62) - 12345)
# By how much normals may differ from the CPU's, whose series are rounded at every term.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.fixture(params=[triton_philox, philox_reference], ids=["triton", "integers"])
def draws_of(request, monkeypatch):
    """Makes draws on the device with one of the two generators."""
    monkeypatch.setattr("gwf_fast.randomness.draws._device_kernels", lambda device: request.param)

    def make(seed, iteration):
        draws = DeviceDraws(seed, DEVICE)
        draws.iteration += iteration
        draws.begin(99)  # what the host believes must not matter
        return draws

    return make


def host(seed, iteration):
    draws = Draws(seed)
    draws.begin(iteration)
    return draws


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("iteration", [0, (1 << 32) - 1])
def test_integers_and_rows_are_the_hosts(draws_of, seed, iteration):
    mine, theirs = draws_of(seed, iteration), host(seed, iteration)
    for n, bound in ((63, 10), (300, (1 << 40) + 12345), (32, (1 << 62) - 1)):
        got = mine.indices(n, bound, DEVICE)
        assert got.device.type == DEVICE.type and got.dtype == torch.int64
        torch.testing.assert_close(got.cpu(), theirs.indices(n, bound, torch.device("cpu")), rtol=0, atol=0)
    for dim in (1, 2, 130):
        pool = torch.randn(500, dim)
        assert torch.equal(mine.rows(pool.to(DEVICE), 99).cpu(), theirs.rows(pool, 99))
    backwards = torch.randn(40, 3).flip(0).T  # not contiguous
    assert torch.equal(mine.rows(backwards.to(DEVICE), 2).cpu(), theirs.rows(backwards, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", SEEDS)
def test_uniforms_and_dropout_are_the_hosts(draws_of, seed, dtype):
    mine, theirs = draws_of(seed, 5), host(seed, 5)
    for n in (1, 300):
        like = torch.zeros(3, dtype=dtype)
        assert torch.equal(mine.uniforms(n, like.to(DEVICE)).cpu(), theirs.uniforms(n, like))
        for stream, rate in zip(STREAMS, (0.0, 0.1, 0.5, 0.999), strict=True):
            got = mine.kept(stream, 70, n, rate, like.to(DEVICE))
            assert torch.equal(got.cpu(), theirs.kept(stream, 70, n, rate, like)), (stream, rate)


def test_a_rate_between_two_uniforms():
    """The threshold on 32 bits is where the comparison of float64 turns."""
    for word in (0, 1, 12345, (1 << 32) - 1):
        uniform = (word + 0.5) * 2.0**-32
        below, above = uniform - 2.0**-40, uniform + 2.0**-40
        assert philox_reference.threshold(uniform) == word
        assert (philox_reference.threshold(below), philox_reference.threshold(above)) == (word, word + 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_normals_are_the_hosts_to_rounding(draws_of, dtype):
    mine, theirs = draws_of(SEEDS[2], 11), host(SEEDS[2], 11)
    for n, dim in ((1, 1), (63, 2), (500, 17)):
        like = torch.zeros(dim, dtype=dtype)
        got, want = mine.normals(n, like.to(DEVICE)).cpu(), theirs.normals(n, like)
        assert got.shape == (n, dim) and got.dtype == dtype
        assert ((got - want).abs() / (1 + want.abs())).max() <= TOLERANCE[dtype]


def test_the_published_philox(draws_of):
    """Known answer of Random123 for zero counters and keys: 6627e8d5 e169c58d bc57ac4c 9b00dbd8."""
    expected = ((0x6627E8D5 << 32 | 0xE169C58D) * (1 << 31)) >> 64
    assert draws_of(0, 0).indices(1, 1 << 31, DEVICE).item() == expected


def test_draws_for_another_device_are_the_hosts():
    draws = DeviceDraws(7, torch.device("meta"))
    draws.begin(4)
    assert torch.equal(draws.indices(9, 50, torch.device("cpu")), host(7, 4).indices(9, 50, torch.device("cpu")))
    draws.begin(4)
    assert torch.equal(draws.uniforms(9, torch.zeros(1)), host(7, 4).uniforms(9, torch.zeros(1)))


def test_a_device_without_a_number_is_the_one_of_the_draws():
    draws: Any = DeviceDraws(7, torch.device("cpu"))
    draws.counter = types.SimpleNamespace(device=torch.device("cuda", 0))
    assert draws._serves(torch.device("cuda")) and draws._serves(torch.device("cuda", 0))
    assert not draws._serves(torch.device("cuda", 1)) and not draws._serves(torch.device("cpu"))


def test_a_skipped_draw_keeps_its_place(draws_of):
    mine, theirs = draws_of(1, 2), host(1, 2)
    mine.skip()
    theirs.skip()
    assert torch.equal(mine.indices(5, 1000, DEVICE).cpu(), theirs.indices(5, 1000, torch.device("cpu")))


COMPILES = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gwf_fast.kernels.triton import philox as p

scalars = {"stream": "i32", "n": "i32", "bound": "i64", "dim": "i32", "first": "i32", "threshold": "i64"}
for target in (("cuda", 90, 32), ("hip", "gfx942", 64)):
    for kernel in (p.indices_kernel, p.rows_kernel, p.uniforms_kernel, p.kept_kernel, p.normals_kernel):
        out = "*i64" if kernel is p.indices_kernel else "*fp32"
        pointers = {"counter": "*i64", "out": out, "pool": "*fp32"}
        constants = {"BLOCK": 128, "COLUMNS": 2, "TERMS": p.TERMS}
        values = {name: value for name, value in constants.items() if name in kernel.arg_names}
        types = {n: pointers.get(n) or scalars.get(n) or "constexpr" for n in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=types, constexprs=values)
        done = triton.compile(source, target=GPUTarget(*target), options=dict(p.OPTIONS))
        print(target[1], kernel.__name__, done.metadata.shared, len(done.asm.get("cubin", done.asm.get("amdgcn"))))
"""


def test_compiles_for_every_target():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 10
