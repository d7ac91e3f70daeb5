"""A drifting model's updates with nothing asked of the host, and looked at every so often.

Here the device is the CPU, and a replay calls the update again, or repeats its operations (``tape.py``); graphs
themselves are in ``gpu/test_drifting_graph.py``.
"""

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast.flows.drifting_loop import MOST, DriftingLoop
from tests.tape import taped

TARGET = torch.randn(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.3 + 1
OPTIONS = {
    "gmd": {"temperature": 0.5},
    "parzen_kl": {"bandwidth": 0.5},
    "mmd": {"kernel": gwf.Gaussian(1.0)},
    "energy": {},
}


def model(kind="gmd", **options):
    torch.manual_seed(7)  # of the generator below
    drift = {"drift": kind} if callable(kind) else {"drift": kind, "options": OPTIONS[kind]}
    settings = {"latent_dim": 4, "batch_size": 24, "generator": gwf.nn.MLP([4, 16, 2], "silu"), "seed": 3, **options}
    return gwf.DriftingModel(dim=2, **drift, **settings)


def again(call, device):
    """A replay that runs the update's Python once more."""
    return call


def values(state):
    return [v.detach().cpu() for v in state.values().values() if isinstance(v, torch.Tensor)]


def trained(flow, updates, target=TARGET, record=None, most=1):
    """The state after so many updates, done ``most`` at a time as soon as they are replayed."""
    state = flow.init(target if isinstance(target, torch.Tensor) else TARGET)
    loop = DriftingLoop(flow, state, target, updates, record)
    while state.step < updates:
        loop.run(min(most if loop.most > 1 else 1, updates - state.step))
    return state, loop


@pytest.mark.parametrize(("kind", "record"), [("gmd", again), *((kind, taped) for kind in OPTIONS)])
def test_replays_change_nothing(kind, record):
    options = {"ema": 0.9, "lr_schedule": "cosine"}
    host, _ = trained(model(kind, **options), 40)
    device, loop = trained(model(kind, **options), 40, record=record, most=17)
    assert loop.most == MOST and loop._repeated.refusal is None
    for mine, theirs in zip(values(device), values(host), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    assert device.pending == pytest.approx(host.pending, rel=1e-9) and len(host.pending) == 40
    start = model(kind, **options).init(TARGET)
    assert (values(start)[0] - values(host)[0]).abs().max() > 1e-3
    for state in (host, device):
        group = state.optimizer.param_groups[0]
        assert isinstance(group["lr"], float) and group["capturable"] is False
        assert not hasattr(state.optimizer, "found_inf")


@pytest.mark.parametrize("bad", ["drift", "gradient"])
def test_what_is_not_finite_leaves_the_last_good_state(bad):
    """Found some updates later: parameters, moments, counters and the average are those before it."""

    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = gwf.nn.MLP([4, 16, 2], "silu")
            self.calls: torch.Tensor
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

        def forward(self, z):
            self.calls += 1
            x, factor = self.net(z), torch.where(self.calls < 30, 1.0, torch.inf)
            if bad == "gradient":
                x.register_hook(lambda g: g * factor)
            return x

    calls = torch.zeros((), dtype=torch.float64)

    def drift(x, y):
        calls.add_(1)
        velocity = y.mean(0) - x
        return velocity / torch.where(calls < 30, 1.0, 0.0) if bad == "drift" else velocity

    flow = model(drift, generator=Breaks(), ema=0.9)
    good, _ = trained(flow, 29)
    calls.zero_()
    state = flow.init(TARGET)
    loop = DriftingLoop(flow, state, TARGET, 60, None)
    with pytest.raises(gwf.NonFiniteError, match=r"update 30: the mean of .* the state after update 29 is kept"):
        loop.run(40)
    assert state.step == 29 and len(state.pending) == 29
    names = [name for name, v in state.values().items() if isinstance(v, torch.Tensor)]
    for name, mine, theirs in zip(names, values(state), values(good), strict=True):
        if not name.endswith("calls"):
            assert torch.equal(mine, theirs), name


def test_what_the_host_has_a_part_in_is_not_replayed():
    for drift, reason in (
        (lambda x, y: (y.mean(0) - x) / max(1.0, x.abs().max().item()), "the host reads a result"),
        (None, "with an optimiser of its own"),
    ):
        flow = gwf.DriftingModel("critic", 2, batch_size=16) if drift is None else model(drift)
        _, loop = trained(flow, 12, TARGET if drift else TARGET.float(), again)
        assert reason in loop._repeated.refusal and loop.most == 1
    _, loop = trained(model(), 12, lambda n: TARGET[:n], again)
    assert "Python function" in loop._repeated.refusal
    _, loop = trained(model(optimizer="SGD"), 12, TARGET, again)
    assert "not this package's Adam" in loop._repeated.refusal
