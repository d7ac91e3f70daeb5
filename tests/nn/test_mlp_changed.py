"""A network whose layers were replaced, changed or hooked into is what it prints as, compiled or not."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gwf_fast as gwf

GENERATOR = torch.Generator().manual_seed(0)
X, Z = (torch.randn(n, 2, generator=GENERATOR) for n in (40, 50))


def replace_layers(net):
    net[0], net[2] = nn.Linear(2, 4), nn.Linear(4, 1)


def replace_activation(net):
    net[1] = nn.Tanh()


def change_slope(net):
    net[1].negative_slope = 0.9


class Doubled(nn.Linear):
    """A Linear that does something of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def own_forward(net):
    linear = net[0]
    linear.forward = lambda x: 3 * nn.functional.linear(x, linear.weight, linear.bias)


CHANGES = {
    "layers": replace_layers,
    "activation": replace_activation,
    "slope": change_slope,
    "subclass": lambda net: net.__setitem__(0, Doubled(2, 64)),
    "no bias": lambda net: net.__setitem__(0, nn.Linear(2, 64, bias=False)),
    "append": lambda net: net.append(nn.Linear(1, 1)),
    "insert": lambda net: net.insert(1, nn.Dropout(0.0)),
    "forward": own_forward,
    "hook": lambda net: net[0].register_forward_hook(lambda module, inputs, out: 5 * out),
    "spectral_norm": lambda net: nn.utils.spectral_norm(net[0]),
    "prune": lambda net: prune.l1_unstructured(net[0], "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_network_is_what_it_prints_as(name):
    """Its spec was obeyed while its layers were replaced: raw memory was read."""
    torch.manual_seed(0)
    net = gwf.nn.MLP([2, 64, 1], "leaky_relu")
    CHANGES[name](net)
    net.eval()  # power iterations do not move
    twin = nn.Sequential(*net)
    x = X.clone().requires_grad_()
    got, want = net(x), twin(x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x))
    value, gradient = net.value_and_grad(x)
    torch.testing.assert_close(value, want[:, 0])
    torch.testing.assert_close(gradient, torch.autograd.grad(twin(x).sum(), x)[0])
    loss = gwf.nn.critic_objective(net, x, Z, divergence="ipm")
    torch.testing.assert_close(loss, twin(x).mean() - twin(Z).mean())


def other_shape(net):
    net[0].weight.data = torch.randn(3, 2)


def on_meta(net):
    net[0].to("meta")


def no_weight(net):
    del net[0].weight


@pytest.mark.parametrize("change", [other_shape, on_meta, no_weight])
def test_a_layer_that_cannot_work_says_so(change):
    """As PyTorch does; a flow overflowed the heap in its fused engine."""
    net = gwf.nn.MLP([2, 64, 2])
    change(net)
    with pytest.raises((RuntimeError, TypeError, AttributeError, ValueError)):
        net(X)
    with pytest.raises((RuntimeError, TypeError, AttributeError, ValueError)):
        run_flow(net)


def test_a_layer_of_another_type_is_refused_or_converted():
    net = gwf.nn.MLP([2, 64, 2])
    net[2].half()
    with pytest.raises(RuntimeError, match="dtype"):
        net(X)
    run_flow(net)  # which brings it to the particles' precision


def run_flow(net):
    training = gwf.Training(batch_size=32, iterations=2)
    flow = gwf.JKOFlow(gwf.Potential(_square), 2, 0.1, map=lambda: copy.deepcopy(net), training=training)
    flow.run(X, 1, progress=False)


def _square(x):
    return x.square().sum(1)


def test_part_of_a_network_is_a_sequential():
    net = gwf.nn.MLP([2, 8, 8, 1], "silu")
    assert type(net[:-1]) is nn.Sequential
    torch.testing.assert_close(net[-1](net[:-1](X)), net(X))
    assert isinstance(net[-1], nn.Linear)


def test_a_changed_map_keeps_its_layers_in_a_flow(tmp_path):
    """They were forgotten: a new network of the old configuration took their place, and a checkpoint wrote that one."""
    template = gwf.nn.MLP([2, 8, 2], residual=True)
    template[1] = nn.Tanh()
    training = gwf.Training(batch_size=32, iterations=3)
    flow = gwf.JKOFlow(gwf.Potential(lambda x: x.square().sum(1)), 2, 0.1, map=template, training=training)
    result = flow.run(X, 1, progress=False, checkpoint=tmp_path / "run")
    changed: Any = result.maps[0]
    assert isinstance(changed[1], nn.Tanh)
    with pytest.raises(ValueError, match="map="):
        gwf.JKOFlow.resume(tmp_path / "run", functional=flow.functional, progress=False)


@pytest.mark.parametrize("activation", ["prelu", "leaky_relu", "silu"])
def test_a_call_looks_up_no_attribute_of_a_layer(activation, monkeypatch):
    """Whether the modules are what the spec says is asked at every call, and calls may be of microseconds."""
    net = gwf.nn.MLP([2, 8, 8, 1], activation)
    want = net(X)
    asked = []
    found = nn.Module.__getattr__
    monkeypatch.setattr(nn.Module, "__getattr__", lambda self, name: asked.append(name) or found(self, name))
    got = net(X)
    monkeypatch.undo()
    assert torch.equal(got, want)
    assert asked == []


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_a_call_is_seen(name):
    """What was found at one call is not taken for granted at the next."""
    torch.manual_seed(0)
    net = gwf.nn.MLP([2, 64, 1], "leaky_relu")
    net(X)
    CHANGES[name](net)
    net.eval()
    torch.testing.assert_close(net(X), nn.Sequential(*net)(X))


def test_copies_look_at_their_own_layers():
    net = gwf.nn.MLP([2, 8, 1])
    net(X)
    other: Any = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.mul_(2)
    torch.testing.assert_close(other(X), nn.Sequential(*other)(X))
    other[1].register_forward_hook(lambda module, inputs, out: 5 * out)
    torch.testing.assert_close(other(X), nn.Sequential(*other)(X))
    assert "_plan" not in pickle.loads(pickle.dumps(net)).__dict__
