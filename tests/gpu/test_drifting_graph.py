"""A drifting model's updates as a CUDA graph: those of the loop, on the device."""

import warnings

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast.flows.engines import graph
from tests.flows.test_drifting_loop import OPTIONS, TARGET, model, trained, values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda", 0)


def both(monkeypatch, flow, updates=60):
    """Trained by replays, and call by call."""
    captured, loop = trained(flow, updates, TARGET.to(CUDA), most=20)
    with monkeypatch.context() as patch:
        patch.setattr(graph, "FEWEST", 1 << 40)
        eager, plain = trained(flow, updates, TARGET.to(CUDA))
    assert plain.most == 1
    return captured, eager, loop


@pytest.mark.parametrize("kind", OPTIONS)
def test_captured_is_eager(kind, monkeypatch):
    captured, eager, loop = both(monkeypatch, model(kind, ema=0.9))
    assert loop._repeated.refusal is None and loop.most > 1
    for mine, theirs in zip(values(captured), values(eager), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    assert captured.pending == pytest.approx(eager.pending, rel=1e-9)


def test_a_changing_rate_in_single_precision(monkeypatch):
    flow = model("gmd", lr_schedule="cosine")
    target = TARGET.to(CUDA, torch.float32)
    captured, loop = trained(flow, 60, target, most=20)
    assert loop._repeated.refusal is None and loop.most > 1
    with monkeypatch.context() as patch:
        patch.setattr(graph, "FEWEST", 1 << 40)
        eager, _ = trained(flow, 60, target)
    for mine, theirs in zip(values(captured), values(eager), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_dropout_follows_the_seed_of_each_update(monkeypatch):
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2))
    captured, eager, loop = both(monkeypatch, model("gmd", generator=generator))
    assert loop.most > 1
    for mine, theirs in zip(values(captured), values(eager), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_killed_and_resumed(tmp_path):
    """The same bits, whatever the updates were that one look saw."""
    flow = model("gmd", ema=0.9, record_every=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = flow.run(TARGET.to(CUDA), 100, progress=False)
    looks = []

    def stop(x):
        looks.append(1)
        if len(looks) == 2:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        flow.run(TARGET.to(CUDA), 100, progress=False, checkpoint=tmp_path / "run", evaluate=stop)
    resumed = gwf.DriftingModel.resume(tmp_path / "run", progress=False)
    for mine, theirs in zip(resumed.generator.parameters(), whole.generator.parameters(), strict=True):
        assert torch.equal(mine.to(CUDA), theirs)


def test_a_drift_that_reads_says_so():
    flow = model(lambda x, y: (y.mean(0) - x) / max(1.0, x.abs().max().item()))
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        flow.run(TARGET.to(CUDA), 20, progress=False)


def test_what_is_not_finite_stops_the_run():
    calls = torch.zeros((), dtype=torch.float64, device=CUDA)

    def drift(x, y):
        calls.add_(1)
        return (y.mean(0) - x) / torch.where(calls < 30, 1.0, 0.0)

    flow, state = model(drift), None
    state = flow.init(TARGET.to(CUDA))
    with pytest.raises(gwf.NonFiniteError, match=r"update 30|update 29|update 28"):
        flow.run(TARGET.to(CUDA), 60, progress=False, state=state)
    assert all(p.isfinite().all() for p in state.generator.parameters())
