"""What a step copies of the state before it: networks and moments, without a look at every attribute."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast.flows.state import copied
from gwf_fast.flows.training import new_optimizer


def networks() -> dict[str, nn.Module]:
    net = gwf.nn.MLP([2, 5, 4, 2], residual=True)
    frozen = gwf.nn.MLP([2, 5, 1], "silu", "tanh")
    frozen[0].requires_grad_(False)
    tied = gwf.nn.MLP([3, 3, 3], "relu")
    tied[2].weight = tied[0].weight
    hooked = gwf.nn.MLP([2, 5, 1])
    hooked[0].register_forward_hook(lambda *_: None)
    own: Any = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    own.note = {"of": ["its", "own"]}
    return {
        "mlp": net.double().eval(),
        "frozen": frozen,
        "tied": tied,
        "hooked": hooked,
        "own": own,
        "several": nn.ModuleList([gwf.nn.MLP([2, 3, 1]), gwf.nn.MLP([2, 4, 1], "tanh")]),
        "parametrised": nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
    }


@pytest.mark.parametrize("name", list(networks()))
def test_a_copy_is_a_deep_copy(name):
    module = networks()[name]
    new, want = copied(module), copy.deepcopy(module)
    for got, expected, given in zip(new.modules(), want.modules(), module.modules(), strict=True):
        assert type(got) is type(expected) and vars(got).keys() == vars(expected).keys()
        assert got.training == given.training and got.extra_repr() == given.extra_repr()
        for attribute, value in vars(expected).items():
            if not isinstance(value, torch.Tensor) and attribute not in ("_parameters", "_modules", "_buffers"):
                found = vars(got)[attribute]
                assert type(found) is type(value) and (found == value or len(found) == len(value))
                assert not isinstance(found, (dict, list)) or found is not vars(given)[attribute]
    assert new.state_dict().keys() == module.state_dict().keys()
    originals = {t.data_ptr() for t in module.state_dict().values()}
    for key, value in new.state_dict().items():
        assert torch.equal(value, module.state_dict()[key]) and value.data_ptr() not in originals
    flags = [p.requires_grad for p in module.parameters()]
    assert [p.requires_grad for p in new.parameters()] == flags  # of tied layers, once
    x = torch.randn(4, 3 if name == "tied" else 2, dtype=next(module.parameters()).dtype)
    if name != "several":
        assert torch.equal(new.eval()(x), module.eval()(x))


def test_moments_are_carried_on_as_a_loaded_state():
    net = gwf.nn.MLP([2, 5, 1])
    parameters = list(net.parameters())
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99)}
    first = new_optimizer(None, parameters, **options)
    net(torch.randn(8, 2)).square().mean().backward()
    first.step()
    state = first.state_dict()
    got = new_optimizer(None, parameters, **options, carried=state)
    want = torch.optim.AdamW(parameters, **options, fused=True)
    want.load_state_dict({"state": copy.deepcopy(state["state"]), "param_groups": want.state_dict()["param_groups"]})
    before = copy.deepcopy(state["state"])
    for parameter in parameters:
        assert got.state[parameter].keys() == want.state[parameter].keys()
        for key, value in want.state[parameter].items():
            found = got.state[parameter][key]
            assert torch.equal(found, value) and found.dtype == value.dtype and found.stride() == value.stride()
    got.step()  # what it goes on from stays as it was
    for number, values in state["state"].items():
        assert all(torch.equal(value, before[number][key]) for key, value in values.items())


class _Counted(gwf.Functional):
    """Counts how often it is told of the particles."""

    def __init__(self):
        self.asked = 0

    def reference(self, particles):
        self.asked += 1

    def map_objective(self, critic, x, z, reference):
        return x.square().mean()

    value = map_objective


def test_a_step_looks_at_its_particles_once():
    functional = _Counted()
    flow = gwf.JKOFlow(functional, 2, 0.1, training=gwf.Training(batch_size=4, iterations=1))
    flow.step(flow.init(torch.randn(8, 2)))
    assert functional.asked == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_particle_that_is_not_finite_is_seen(value):
    from gwf_fast.flows.state import require_finite

    particles = torch.full((5, 2), 3e38)  # whose sum is infinite, though they are not
    require_finite(particles)
    particles[3, 1] = value
    with pytest.raises(gwf.NonFiniteError, match="1 of 5 particles"):
        require_finite(particles)
    particles[0, 0] = -value  # infinities of both signs
    with pytest.raises(gwf.NonFiniteError, match="2 of 5 particles"):
        require_finite(particles)
