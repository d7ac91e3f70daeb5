"""``gwf-fast selftest``: the table, what counts as a failure."""

import types

import pytest
from typer.testing import CliRunner

from gwf_fast import selftest
from gwf_fast.cli import app
from gwf_fast.kernels import reference


def test_reference_passes():
    lines = []
    assert selftest.run(["torch"], device="cpu", match="sum-", echo=lines.append) == 0
    assert lines[-1].split()[0] == "torch"
    assert int(lines[-1].split()[1]) > 10


def test_a_wrong_backend_fails(monkeypatch):
    wrong = types.SimpleNamespace(pair_sum=lambda *a, **k: reference.pair_sum(*a, **k) * 1.001)
    monkeypatch.setattr(selftest.importlib, "import_module", lambda name: wrong)
    lines = []
    assert selftest.run(["torch"], device="cpu", match="sum-", echo=lines.append) > 0
    assert any("tolerance" in line for line in lines[2:])


def test_a_backend_that_is_asked_for_must_run():
    lines = []
    assert selftest.run(["cuda"], device="cpu", echo=lines.append) == 1
    assert "FAILED: serves cuda tensors, not cpu" in lines[-1]


def test_unknown_backend():
    with pytest.raises(ValueError, match="backends: got 'metal', expected one of cpp, cuda"):
        selftest.run(["metal"])


class TestCommandLine:
    """What a script sees of ``gwf-fast selftest``: 0, 1 where a backend fails, 2 for a mistake in the arguments."""

    FEW = ("selftest", "--device", "cpu", "--match", "sum-gaussian-1x63x500x1-")

    def test_success(self):
        done = CliRunner().invoke(app, [*self.FEW, "--backend", "torch"])
        assert (done.exit_code, "largest error / tolerance" in done.output) == (0, True)

    def test_failure(self, monkeypatch):
        wrong = types.SimpleNamespace(pair_sum=lambda *a, **k: reference.pair_sum(*a, **k) * 1.001)
        monkeypatch.setattr(selftest.importlib, "import_module", lambda name: wrong)
        done = CliRunner().invoke(app, [*self.FEW, "--backend", "torch"])
        assert (done.exit_code, "tolerance" in done.output) == (1, True)

    def test_a_backend_that_does_not_import(self, monkeypatch):
        def fail(name):
            raise ImportError("libcuda.so.1: no such file")

        monkeypatch.setattr(selftest.importlib, "import_module", fail)
        done = CliRunner().invoke(app, [*self.FEW, "--backend", "torch"])
        assert (done.exit_code, "does not import: libcuda" in done.output) == (1, True)

    def test_mistake(self):
        assert CliRunner().invoke(app, ["selftest", "--backend", "metal"]).exit_code == 2
