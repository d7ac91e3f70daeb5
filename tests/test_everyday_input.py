"""What people pass on an ordinary day: NumPy's numbers, an array for a list, nothing; and a log for a terminal."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import gwf_fast as gwf
from gwf_fast.compat.mmd_gan import mix_rbf_mmd2
from gwf_fast.flows import progress

X, Y = torch.randn(6, 2), torch.randn(5, 2)


def test_numpy_integers(tmp_path):
    """They end in a checkpoint, whose JSON knows Python's only."""
    two = np.int64(2)
    training = gwf.Training(batch_size=np.int32(4), iterations=two, critic_steps=np.uint8(1), pool_size=np.int64(8))  # type: ignore[arg-type]
    assert {type(n) for n in (training.batch_size, training.iterations, training.pool_size)} == {int}
    flow = gwf.JKOFlow(gwf.KL(lambda x: -x.square().sum(-1)), two, 0.5, training=training)  # type: ignore[arg-type]
    flow.run(X, np.int64(1), progress=False, checkpoint=tmp_path / "flow")  # type: ignore[arg-type]
    model = gwf.DriftingModel("energy", two, latent_dim=two, batch_size=np.int64(4), record_every=two)  # type: ignore[arg-type]
    model.run(X, np.int64(2), progress=False, checkpoint=tmp_path / "model")  # type: ignore[arg-type]
    for name, n_steps in (("flow", 1), ("model", 2)):
        assert json.loads((tmp_path / name / "checkpoint.json").read_text())["n_steps"] == n_steps
    for bad in (np.bool_(True), True, np.int64(0), 2.0, "2", torch.ones(2)):
        kind = ValueError if isinstance(bad, np.int64) else TypeError
        with pytest.raises(kind, match=r"^dim must be a positive integer, got "):
            gwf.DriftingModel("energy", bad)  # type: ignore[arg-type]


def test_x0_as_an_array_is_told():
    flow = gwf.JKOFlow(gwf.KL(lambda x: -x.square().sum(-1)), 2, 0.5, training=gwf.Training(batch_size=4, iterations=1))
    with pytest.raises(TypeError, match=r"x0 must be a tensor \[N, D\] or a callable n -> samples, got ndarray"):
        flow.run(X.numpy(), 1, progress=False)  # type: ignore[arg-type]


def test_kernels_in_sum():
    kernels = [gwf.Gaussian(s) for s in (1.0, 2.0)]
    assert sum(kernels) == kernels[0] + kernels[1]
    with pytest.raises(TypeError):
        sum(kernels, 1)


@pytest.mark.parametrize("of", [list, np.array, torch.tensor, tuple])
def test_bandwidths_of_any_sequence(of):
    torch.testing.assert_close(mix_rbf_mmd2(X, Y, of([1.0, 2.0])), mix_rbf_mmd2(X, Y, [1.0, 2.0]))
    with pytest.raises(ValueError, match="sigma_list"):
        mix_rbf_mmd2(X, Y, of([]))


@pytest.mark.parametrize("shape", [(0, 2), (3, 0, 2), (0, 4, 2)])
def test_nothing_to_move(shape):
    nothing = torch.zeros(shape, requires_grad=True)
    out = gwf.svgd_direction(nothing, nothing, kernel=gwf.Gaussian(1.0))
    assert out.shape == shape and torch.autograd.grad(out.sum(), nothing)[0].shape == shape
    others = torch.randn(*shape[:-2], 5, 2)
    drift = gwf.drift.gmd_multi(nothing.detach(), others)
    assert drift.velocity.shape == shape


def test_a_generator_of_no_noise():
    training = gwf.Training(batch_size=4, iterations=1, pool_size=8)
    functional = gwf.KL(lambda x: -x.square().sum(-1))
    flow = gwf.JKOFlow(functional, 3, 0.5, parametrization="generator", latent_dim=2, training=training)
    result = flow.run(lambda n: torch.randn(n, 2), 1, progress=False)
    assert result.push(torch.zeros(0, 2)).shape == (0, 3) and result.sample(0).shape == (0, 3)
    assert result.push(torch.zeros(5, 2)).shape == (5, 3)


def test_progress_in_a_log(monkeypatch):
    """A line every ten seconds and one at the end, not a carriage return an iteration."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress(300, 100, shown=True, name="steps") as bar:
        for k in range(200):
            now[0] += 0.125
            bar.set_postfix_str(f"loss {k}")
            bar.update()
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert lines[0] == "steps: 179/300 after 0:10, loss 79" and lines[-1] == "steps: 300/300 after 0:25, loss 199"
    assert len(lines) == 3


def test_a_table_kernel_needs_no_sympy():
    code = (
        "import sys, torch, gwf_fast as gwf; x = torch.randn(5, 2, requires_grad=True);"
        "k = gwf.Gaussian(1.0) + gwf.IMQ(2.0);"
        "gwf.kernel_sum(x, x, kernel=k).sum().backward(); gwf.kernel_average(x, x, kernel=k); gwf.mmd2(x, x, kernel=k);"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda x: gwf.sinkhorn(x, Y, epsilon=0.01, max_iterations=2),
        lambda x: gwf.sinkhorn_divergence(x, Y, epsilon=0.01, max_iterations=2),
        lambda x: gwf.drift.sinkhorn(x, Y, epsilon=0.01, max_iterations=2),
    ],
    ids=["potentials", "divergence", "drift"],
)
def test_sinkhorn_warns_once_where_it_was_called(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for step in range(3):
            call(X + step)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert caught[0].filename == __file__ and "Sinkhorn stopped" in str(caught[0].message)
