"""``gwf-fast selftest``: the table, what counts as a failure, and that no case is skipped in silence."""

import collections
import types

import pytest
from typer.testing import CliRunner

from gwf_fast.cli import app
from gwf_fast.kernels.reference import pairs as reference
from gwf_fast.ops import dispatch
from gwf_fast.ops.table import BACKENDS, OPERATIONS, Backend, Service
from gwf_fast.selftest import reductions as selftest
from gwf_fast.selftest import run as selftest_run

WRONG = types.SimpleNamespace(pair_sum=lambda *a, **k: reference.pair_sum(*a, **k) * 1.001)


@pytest.fixture
def wrong_torch(monkeypatch):
    """A backend whose sums are a thousandth too large."""
    monkeypatch.setattr(dispatch, "_LOADED", {"torch": WRONG})
    monkeypatch.setattr(dispatch, "_FUNCTIONS", {})


def run(*backends, **options):
    lines = []
    failures = selftest_run.run(list(backends) or None, device="cpu", echo=lines.append, **options)
    return failures, lines


def test_reference_passes():
    failures, lines = run("torch", match="sum-")
    assert failures == 0
    assert lines[2].split()[0] == "torch"
    assert int(lines[2].split()[1]) > 10
    assert lines[-1].startswith(f"{lines[2].split()[1]} cases, 0 failures")


def test_a_wrong_backend_fails(wrong_torch):
    failures, lines = run("torch", match="sum-")
    assert failures > 0
    assert any("tolerance" in line for line in lines[2:])


def test_a_cpu_install_passes():
    """All operations of the compiled CPU backend, sums without weights among them."""
    failures, lines = run("cpp")
    assert (failures, [line for line in lines if "FAILED" in line]) == (0, [])
    for operation in BACKENDS["cpp"].operations:
        assert f"{operation} " in lines[3]


def test_a_backend_that_is_asked_for_must_run():
    failures, lines = run("cuda", match="sum-")
    assert failures == 1
    assert "FAILED: serves cuda tensors, not cpu" in lines[2]
    assert lines[-1].endswith("backends not run: cuda")


def test_unknown_backend():
    with pytest.raises(ValueError, match="backends: got 'metal', expected one of cpp, cuda"):
        run("metal")


def test_a_match_that_fits_nothing_is_a_failure():
    failures, lines = run("torch", match="no such case")
    assert failures == 1
    assert "FAILED: no case was run, none matches 'no such case'" in lines


CASES = list(selftest_run.all_cases(half=True))


class TestNothingIsSkippedInSilence:
    @pytest.mark.parametrize(("name", "operation"), [(b, o) for b in BACKENDS for o in BACKENDS[b].operations])
    def test_every_operation_of_every_backend_has_cases(self, name, operation):
        cases = [case for case in CASES if case.served_as == operation and selftest_run.serves(name, case)]
        assert cases
        if name not in ("keops",):  # which says why, in the table
            assert {case.dtype for case in cases} >= set(BACKENDS[name].dtypes[:2])

    def test_the_cuda_module_has_all_that_fit_it(self):
        """It never ran: who serves was asked without an operation."""
        served = collections.Counter(case.served_as for case in CASES if selftest_run.serves("cuda", case))
        assert set(served) == {"sum", "gradient", "interaction"}
        fit = [case for case in CASES if case.served_as in served and case.width <= 4]
        assert sum(served.values()) == len(fit) > 60

    def test_run_and_skipped_are_all_there_are(self):
        _, lines = run("torch", match="gaussian-1x33x70x5")
        ran, skipped = int(lines[2].split()[1]), int(lines[2].split()[3])
        cases = [case for case in selftest_run.all_cases() if "gaussian-1x33x70x5" in str(case)]
        assert ran + skipped == len(cases)
        assert skipped == 2
        assert "    skipped 2 mmd: computed from other operations" in lines

    def test_an_operation_without_a_case_fails(self, monkeypatch):
        row = OPERATIONS["stein"]._replace(served_by={"torch": Service("reference.stein")})
        monkeypatch.setitem(OPERATIONS, "sorting", row)
        monkeypatch.setattr(selftest_run, "all_cases", lambda half: iter([selftest.Case("sum")]))
        failures, lines = run("torch")
        assert "    FAILED sorting: no case was run" in lines
        assert failures == len(BACKENDS["torch"].operations) - 1

    def test_backends_that_do_not_run_are_named(self, monkeypatch):
        monkeypatch.setattr(selftest_run, "all_cases", lambda half: iter([selftest.Case("sum")]))
        monkeypatch.setattr(Backend, "absence", lambda self: None if self.name == "torch" else f"no {self.name} here")
        _, lines = run(match="sum")
        assert lines[-1].endswith("backends not run: cpp, cuda, triton, keops")
        assert "cpp      not run: no cpp here" in lines


class TestCommandLine:
    """What a script sees of ``gwf-fast selftest``: 0, 1 where a backend fails, 2 for a mistake in the arguments."""

    FEW = ("selftest", "--device", "cpu", "--match", "sum-gaussian-1x63x500x1-")

    def test_success(self):
        done = CliRunner().invoke(app, [*self.FEW, "--backend", "torch"])
        assert (done.exit_code, "largest error / tolerance" in done.output) == (0, True)

    def test_failure(self, wrong_torch):
        done = CliRunner().invoke(app, [*self.FEW, "--backend", "torch"])
        assert (done.exit_code, "tolerance" in done.output) == (1, True)

    def test_a_backend_that_does_not_import(self, monkeypatch):
        def fail(name):
            raise ImportError("libcuda.so.1: no such file")

        monkeypatch.setattr(dispatch, "_LOADED", {})
        monkeypatch.setattr(dispatch, "_FUNCTIONS", {})
        monkeypatch.setattr(dispatch.importlib, "import_module", fail)
        done = CliRunner().invoke(app, [*self.FEW, "--backend", "torch"])
        assert (done.exit_code, "ImportError: libcuda" in done.output) == (1, True)

    def test_mistake(self):
        assert CliRunner().invoke(app, ["selftest", "--backend", "metal"]).exit_code == 2
