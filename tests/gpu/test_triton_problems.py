"""Triton's Stein, drifting and transport kernels: on a GPU where there is one, under the interpreter elsewhere."""

import importlib
from typing import Any

import pytest
import torch

from gwf_fast.selftest import problems

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def module(case):
    return importlib.import_module(f"gwf_fast.kernels.triton.{problems.OPERATIONS[case.operation].module}")


@pytest.mark.parametrize("case", list(problems.cases(half=True)), ids=str)
def test_matches_reference(case):
    assert problems.error(case, module(case), DEVICE) <= case.tolerance


def test_an_error_would_show():
    """The comparison has teeth: a relative error of 1e-5 in one result fails its case."""
    from gwf_fast.kernels.reference import stein as stein_reference

    class Wrong:
        stein_sum = staticmethod(stein_reference.stein_sum)

        @staticmethod
        def stein_sum_gradients(*arguments):
            of_x, of_score = stein_reference.stein_sum_gradients(*arguments)
            return of_x, of_score * (1 + 1e-5)

    case = problems.ProblemCase("stein")
    assert problems.error(case, Wrong, "cpu") > problems.TOLERANCE[case.dtype]  # type: ignore[arg-type]
    assert problems.error(case, stein_reference, "cpu") <= problems.TOLERANCE[case.dtype]


@pytest.fixture
def on_triton(monkeypatch):
    """As if on a GPU: what looks for a backend is given Triton."""
    from gwf_fast.ops import dispatch

    if DEVICE == "cpu":
        choose = dispatch.resolve
        monkeypatch.setattr(
            dispatch, "resolve", lambda *kind: "triton" if kind[4:5] == ("transport",) else choose(*kind)
        )


def test_small_transport_takes_one_launch(on_triton, monkeypatch):
    """Each problem of a batch stops by itself; the plan is that of the sweeps one by one."""
    import gwf_fast as gwf
    from gwf_fast.kernels.triton import transport

    launches = []
    solve = transport.solve_small
    monkeypatch.setattr(transport, "solve_small", lambda *a, **k: launches.append(a[0].shape) or solve(*a, **k))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 2, n, 2, generator=generator, dtype=torch.float64) for n in (9, 14))
    result = gwf.sinkhorn(x.to(DEVICE), y.to(DEVICE), epsilon=2.0, tolerance=1e-8)
    assert launches == [(4, 9, 2)]
    assert result.error.shape == (2, 2)
    assert float(result.error.max()) <= 1e-8
    monkeypatch.undo()
    want = gwf.sinkhorn(x, y, epsilon=2.0, tolerance=1e-12)
    plan, truth = (r.f[..., None].cpu() + r.g[..., None, :].cpu() for r in (result, want))
    torch.testing.assert_close(plan, truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1e3])
@pytest.mark.parametrize("kernel", ["gaussian", "mixture", "tensor"])
def test_svgd_direction_takes_one_launch(kernel, shift):
    import gwf_fast as gwf

    generator = torch.Generator().manual_seed(1)
    x, score = (torch.randn(2, 21, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    x = x + shift
    bandwidth = torch.tensor(0.9, dtype=torch.float64)
    of = {
        "gaussian": lambda h: gwf.Gaussian(0.8),
        "mixture": lambda h: 0.5 * gwf.Gaussian(0.5) + gwf.IMQ(1.0),
        "tensor": lambda h: gwf.Gaussian(h) + gwf.IMQ(1.5),
    }[kernel]
    got = gwf.svgd_direction(x.to(DEVICE), score.to(DEVICE), kernel=of(bandwidth.to(DEVICE)), backend="triton")
    want = gwf.svgd_direction(x, score, kernel=of(bandwidth), backend="torch")
    torch.testing.assert_close(got.cpu(), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("clip", [None, 1e-4])
def test_gmd_is_one_drift_on_every_path(clip, ragged, monkeypatch):
    """The public function, fused here, against the operators and the reference; the particles are the negatives."""
    import gwf_fast as gwf
    from gwf_fast.kernels.triton import drift

    calls = []
    forces = drift.forces
    monkeypatch.setattr(drift, "forces", lambda *a: calls.append(len(a[5])) or forces(*a))
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(3, n, 2, generator=generator, dtype=torch.float64) + 50 for n in (19, 30))
    options: dict[str, Any] = {"temperature": 0.4, "clip": clip}
    lengths: dict[str, Any] = (
        {"x_lengths": torch.tensor([19, 12, 4]), "y_lengths": torch.tensor([5, 30, 9])} if ragged else {}
    )
    on_device: dict[str, Any] = {name: value.to(DEVICE) for name, value in lengths.items()}
    got = gwf.drift.gmd(x.to(DEVICE), y.to(DEVICE), **options, **on_device, backend="triton")
    assert calls == [1]
    want = gwf.drift.gmd(x, y, **options, **lengths, backend="torch")
    torch.testing.assert_close(got.cpu(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["ksd2", "svgd", "gmd", "gmd_clip", "gmd_large", "gmd_multi", "sinkhorn", "median"])
def test_captured_in_a_graph(name):
    """What was captured computes anew from the same memory: no host has a part in it."""
    import gwf_fast as gwf

    def call(x, y):
        h = gwf.median_bandwidth(x[0])
        return {
            "ksd2": lambda: gwf.ksd2(x, -x, kernel=gwf.IMQ(1.0)),
            "svgd": lambda: gwf.svgd_direction(x, -x, kernel=gwf.Gaussian(h)),
            "gmd": lambda: gwf.drift.gmd(x, y, temperature=0.5),
            "gmd_clip": lambda: gwf.drift.gmd(x, y, temperature=0.5, clip=1e-6),
            "gmd_large": lambda: gwf.drift.gmd(x.flatten(0, 1), y.flatten(0, 1), temperature=0.5),
            "gmd_multi": lambda: gwf.drift.gmd_multi(x, y).velocity,
            "sinkhorn": lambda: gwf.sinkhorn(x, y, epsilon=0.5).f,
            "median": lambda: h,
        }[name]()

    generator = torch.Generator().manual_seed(3)
    x, y, other = (torch.randn(8, n, 5, generator=generator).cuda() for n in (48, 96, 48))
    call(x, y)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(x, y)
    x.copy_(other)
    graph.replay()
    torch.testing.assert_close(out, call(other, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 1e-4])
def test_weights_of_drifting_are_those_of_every_path(clip):
    """Of the kernel, by operators or PyTorch, and each particle's own, which no program reads."""
    import gwf_fast as gwf

    generator = torch.Generator().manual_seed(3)
    x, y, z = (torch.randn(2, n, 3, generator=generator, dtype=torch.float64) for n in (9, 14, 7))
    logs, own = y[..., 0].clone(), z[:, None, :, 0].abs() * x[..., :1].abs()
    logs[0, 1] = -torch.inf

    def drifts(tensors, backend):
        x, y, z, logs, own = tensors
        options: dict[str, Any] = {"temperature": [0.3, 1.0], "negatives": z, "y_log_weights": logs, "clip": clip}
        weighed = gwf.drift.gmd(x, y, **options, backend=backend)
        return weighed + gwf.drift.gmd_multi(x, y, negatives=z, negatives_weights=own, backend=backend).velocity

    on_device = [t.to(DEVICE) for t in (x, y, z, logs, own)]
    got = drifts(on_device, "triton")
    torch.testing.assert_close(got.cpu(), drifts([x, y, z, logs, own], "torch"), rtol=1e-9, atol=1e-11)
