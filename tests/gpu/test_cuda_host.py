"""The CUDA backend as far as a CPU goes: pair arithmetic, packing and launch arithmetic, compiled by g++."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gwf_fast.kernels.cuda import pairs as cuda
from gwf_fast.kernels.reference import pairs as reference
from gwf_fast.selftest import reductions as selftest

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")

pytestmark = pytest.mark.skipif(
    CXX is None or not (ROOT / "csrc" / "gpu").is_dir(), reason="needs a C++ compiler and the source tree"
)


class Term(ctypes.Structure):
    _fields_ = (
        ("profile", ctypes.c_int),
        ("coefficient", ctypes.c_double),
        ("ratio", ctypes.c_double),
        ("parameter", ctypes.c_double),
    )


class Request(ctypes.Structure):  # csrc/gpu/pairwise.h
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "sources", "base", "out", "x_lengths", "y_lengths")),
        *((name, ctypes.c_int64) for name in ("batch", "n", "m_padded")),
        ("dim", ctypes.c_int),
        ("splits", ctypes.c_int),
        ("gradient", ctypes.c_bool),
        ("exclude_self", ctypes.c_bool),
        ("scale", ctypes.c_double),
        ("terms", ctypes.POINTER(Term)),
        ("term_count", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("host") / "host_rows.so"
    command = [CXX, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, str(ROOT / "tests" / "gpu" / "host_rows.cpp"), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture
def backend(library, monkeypatch):
    """kernels/cuda/pairs.py with the compiled module replaced by the same code on the CPU."""

    def rows(is_double, *arguments):
        *head, scale, terms, _stream = arguments
        table = (Term * len(terms))(*(Term(*term) for term in terms))
        request = Request(*head, scale, table, len(terms))
        code = library.host_rows(int(is_double), ctypes.byref(request))
        assert code == 0, code

    module = SimpleNamespace(
        rows=rows,
        packed_width=library.host_packed_width,
        tile=library.host_tile(),
        rows_per_block=library.host_rows_per_block,
    )
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 1)
    monkeypatch.setattr(cuda, "_module", lambda: module)
    monkeypatch.setattr(cuda, "_check", lambda *arguments: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: __import__("contextlib").nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    return cuda


CASES = [
    case
    for case in selftest.cases(half=True)
    if case.operation in ("sum", "sum_ones", "gradient") and case.sizes[3] <= cuda.MAX_DIM
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(backend, case):
    assert selftest.error(case, backend, "cpu") <= selftest.TOLERANCE[case.dtype]


def test_four_coordinates_and_many_rows(backend):
    case = selftest.Case("gradient", ("gaussian", "distance"), (2, 3000, 300, 4), exclude_self=True)
    assert selftest.error(case, backend, "cpu") <= selftest.TOLERANCE[case.dtype]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("multiprocessors", [1, 60])
def test_forward_step(backend, in_place, multiprocessors, monkeypatch):
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: multiprocessors)
    x = torch.randn(2, 1500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spec = (0.0, -1.0 / 3.14, 0.7, 0.0)
    velocity = -reference.pair_gradient(x, x, None, spec) / x.shape[1]
    torch.testing.assert_close(backend.interaction_velocity(x, None, spec), velocity, rtol=1e-12, atol=1e-14)
    start = x.clone()
    out = backend.forward_step(start, 0.3, None, spec, out=start if in_place else None)
    torch.testing.assert_close(out, x + 0.3 * velocity, rtol=1e-12, atol=1e-14)
    assert (out is start) == in_place
    energy = reference.pair_sum(x, x, None, spec)[..., 0].sum(1) / (2 * x.shape[1] ** 2)
    torch.testing.assert_close(backend.interaction_energy(x, spec), energy, rtol=1e-12, atol=0)


def test_forward_step_with_sources_and_in_half_precision(backend):
    generator = torch.Generator().manual_seed(2)
    x, sources = (torch.randn(1, n, 3, generator=generator, dtype=torch.float64) for n in (40, 130))
    spec = (1.0, 0.8, 0.9, 0.0)
    want = x - 0.2 * reference.pair_gradient(x, sources, None, spec) / 130
    out = torch.empty_like(x)
    assert backend.forward_step(x, 0.2, sources, spec, out=out) is out
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-14)
    half = x.bfloat16()
    got = backend.forward_step(half, 0.2, sources.bfloat16(), spec)
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).norm() <= 1e-2 * want.norm()
    assert backend.forward_step(half, 0.2, sources.bfloat16(), spec, out=half) is half


def test_few_rows_and_many_sources(backend, monkeypatch):
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 20)
    splits = []
    module = backend._module()
    launch = module.rows
    module.rows = lambda *arguments: splits.append(arguments[11]) or launch(*arguments)
    case = selftest.Case("gradient", ("gaussian", "laplace"), (2, 9, 5000, 3), torch.float64, ragged=True)
    assert selftest.error(case, backend, "cpu") <= selftest.TOLERANCE[case.dtype]
    assert splits[0] > 1


class TestGrid:
    """Sizes beyond 2^31 pairs, rows and bytes, which no machine here holds."""

    @staticmethod
    def grid(library, *sizes):
        out = (ctypes.c_int64 * 3)()
        library.host_grid(*map(ctypes.c_int64, sizes[:3]), *map(ctypes.c_int, sizes[3:]), out)
        return tuple(out)

    @staticmethod
    def place(library, block, row_blocks, batch, rows):
        out = (ctypes.c_int64 * 3)()
        library.host_place(*map(ctypes.c_int64, (block, row_blocks, batch)), ctypes.c_int(rows), out)
        return tuple(out)

    @pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 2**31 - 1, 2**31, 2**33 + 5, 10**11])
    @pytest.mark.parametrize("batch", [1, 3, 70_000])
    @pytest.mark.parametrize("splits", [1, 7])
    def test_every_row_has_one_block(self, library, n, batch, splits):
        row_blocks, blocks, problem = self.grid(library, batch, n, 2**40, 3, 8, splits)
        if problem == -4:
            assert -(-n // 1024) * batch * splits > 2**31 - 1
            return
        assert (problem, row_blocks, blocks) == (0, -(-n // 1024), -(-n // 1024) * batch * splits)
        for block in (0, row_blocks - 1, blocks // 2, blocks - 1):
            split, which, first = self.place(library, block, row_blocks, batch, 8)
            assert 0 <= split < splits
            assert 0 <= which < batch
            assert 0 <= first < n
            assert (split * batch + which) * row_blocks + first // 1024 == block

    @pytest.mark.parametrize("columns", [0, 1, 128, 5000, 2**31 + 3, 10**12])
    @pytest.mark.parametrize("splits", [1, 2, 9])
    def test_every_source_has_one_range(self, library, columns, splits):
        out = (ctypes.c_int64 * 2)()
        end = 0
        for split in range(splits):
            library.host_range(ctypes.c_int64(columns), ctypes.c_int64(split), ctypes.c_int(splits), out)
            assert out[0] % 128 == 0
            if out[0] < out[1]:
                assert out[0] == end
                end = out[1]
        assert end == columns

    def test_refusals(self, library):
        assert self.grid(library, 1, 10, 128, 5, 8, 1)[2] == -1
        assert self.grid(library, 1, 10, 128, 0, 8, 1)[2] == -1
        assert self.grid(library, 1, 10, 100, 2, 8, 1)[2] == -2
        assert self.grid(library, 1, -1, 128, 2, 8, 1)[2] == -2
        assert self.grid(library, 1, 10, 128, 2, 8, 0)[2] == -2
        assert self.grid(library, 2**31, 2**31, 128, 2, 8, 1)[2] == -4
        assert self.grid(library, 0, 10, 128, 2, 8, 1) == (1, 0, 0)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"x, y: got cpu and cpu, the cuda backend expects one CUDA device"):
        cuda.pair_sum(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), None, (0.0, 1.0, 1.0, 0.0))


def test_missing_module_says_how_to_build():
    if torch.cuda.is_available():
        pytest.skip("the module may be there")
    with pytest.raises(ImportError, match="GWF_FAST_CUDA=1"):
        cuda._module()
