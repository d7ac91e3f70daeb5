"""Dense float64 truths of networks and densities, written layer by layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.dense import softmax
from tests.fuzz.rounding import Rounding


class _Expm1(torch.autograd.Function):
    """e^v - 1, whose derivative is e^v and not 1 + (e^v - 1)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return torch.expm1(v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * torch.exp(ctx.saved_tensors[0])


class _Sigmoid(torch.autograd.Function):
    """Its derivative is s(v) s(-v), and not s (1 - s) where that has lost its digits."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return torch.sigmoid(v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return g * (_Sigmoid.apply(v) * _Sigmoid.apply(-v))


class _Softplus(torch.autograd.Function):
    """log(1 + e^v)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return torch.logaddexp(v, torch.zeros_like(v))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * _Sigmoid.apply(ctx.saved_tensors[0])


class _Tanh(torch.autograd.Function):
    """Its derivative is 4 s(2 v) s(-2 v), and not 1 - tanh(v)^2."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return torch.tanh(v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return g * 4 * (_Sigmoid.apply(2 * v) * _Sigmoid.apply(-2 * v))


_expm1, _sigmoid, _softplus, _tanh = _Expm1.apply, _Sigmoid.apply, _Softplus.apply, _Tanh.apply
ACTIVATIONS = {
    "identity": lambda v: v,
    "relu": lambda v: torch.where(v > 0, v, 0 * v),
    "leaky_relu": lambda v: torch.where(v > 0, v, 0.2 * v),
    "celu": lambda v: torch.where(v > 0, v, _expm1(torch.where(v > 0, 0.0, v))),
    "elu": lambda v: torch.where(v > 0, v, _expm1(torch.where(v > 0, 0.0, v))),
    "silu": lambda v: v * _sigmoid(v),
    "softplus": _softplus,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
}
OUTPUTS = {
    "kl": lambda v: v,
    "reverse_kl": lambda v: -torch.exp(-v),
    "js": lambda v: math.log(2) - _softplus(-v),
    "pearson": lambda v: v,
    "neyman": lambda v: -_expm1(-v),
    "squared_hellinger": lambda v: -_expm1(-v),
    "total_variation": lambda v: _tanh(v) / 2,
}
"""Of a critic: the map onto the domain of the conjugate, by divergence."""
CONJUGATES = {
    "kl": lambda v: torch.exp(v - 1),
    "reverse_kl": lambda v: v - 1,
    "js": lambda v: _softplus(v) - math.log(2),
    "pearson": lambda v: torch.where(v > -2, v * v / 4 + v, -1 + 0 * v),
    "neyman": lambda v: -2 * _expm1(-v / 2),
    "squared_hellinger": _expm1,
    "total_variation": lambda v: _tanh(v) / 2,
}
"""f* of that."""


def _curved(R: Rounding, activation: str, x: Tensor) -> Tensor:
    """An activation; the slope of tanh is 1 less the square of a rounded value, flat where it is flat."""
    value = ACTIVATIONS[activation](x)
    return _flattened(R, x, value) if activation == "tanh" else value


def _flattened(R: Rounding, x: Tensor, value: Tensor) -> Tensor:
    """A tanh whose slope has lost what a 1 does not hold."""
    if R.eps == 0:
        return value
    lost = R.moved(torch.zeros_like(x), 1.0).detach()
    return value + lost * (x - x.detach())


def affine(R: Rounding, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W' + b; a sum is off by roundings of its terms, and so are the parameters' derivatives, which are sums too."""
    size = (x.abs() @ weight.abs().T + bias.abs()).detach()
    if R.eps == 0:
        return x @ weight.T + bias
    w, b = (R.behind(t.expand(len(x), *t.shape), 1.0) for t in (weight, bias))
    return R.moved((w @ x[..., None])[..., 0] + b, size)


def network(R: Rounding, x: Tensor, layers: dict[str, Tensor], activation: str) -> Tensor:
    """The layers w0, b0, s0, w1, b1, ..., s the slopes of PReLU."""
    depth = sum(name.startswith("w") for name in layers)
    for k in range(depth):
        x = affine(R, x, layers[f"w{k}"], layers[f"b{k}"])
        if k < depth - 1:
            x = R(torch.where(x > 0, x, layers[f"s{k}"] * x) if activation == "prelu" else _curved(R, activation, x))
    return x


def mlp(R: Rounding, x, *, activation, output, residual, what, sizes, **layers: Any) -> Any:
    if what == "value_and_grad":
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            value = network(R, at, layers, activation)[..., 0]
            (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
        return value, slope
    out = network(R, x, layers, activation)
    out = R(ACTIVATIONS.get(output, OUTPUTS.get(output))(out)) if output else out
    return R(x + out) if residual else out


def critic_objective(R: Rounding, x, z, *, divergence: str, activation: str, sizes, **layers: Tensor) -> Tensor:
    h, k = network(R, x, layers, activation)[:, 0], network(R, z, layers, activation)[:, 0]
    if divergence == "ipm":
        return R(h).mean() - R(k).mean()
    if divergence == "hinge":
        return R(h.clamp(max=1) - 1).mean() - R(k.clamp(min=-1) + 1).mean()
    if divergence == "donsker_varadhan":
        k = R.moved(k, 1.0)
        top = k.detach().max()
        terms = (k - top).exp()
        # apart from the derivatives' shares, whose exponents are formed anew
        total = R.moved(terms, terms.detach() * (1 + k.detach().abs() / 4)).sum()
        return R(h).mean() - R(total.log() + top - math.log(len(k)))
    if divergence == "kl_density":
        tame = k.clamp(max=15).exp() + math.exp(15) * (k - 15).clamp(min=0)
        return R(h).mean() - R(R.moved(tame, k.detach().abs() * tame.detach())).mean()
    of_h, of_k = OUTPUTS[divergence](h), CONJUGATES[divergence](k)
    if divergence == "total_variation":
        of_h, of_k = _flattened(R, h, of_h), _flattened(R, k, of_k)
    return R(of_h).mean() - R(of_k).mean()


OBJECTIVES = (*CONJUGATES, "ipm", "hinge", "donsker_varadhan", "kl_density")


def mixture(R: Rounding, x, means, *, scales, weights, what: str) -> Tensor:
    s, w = (torch.tensor(v, dtype=x.dtype) for v in (scales, weights))
    away = R(means[None] - x[:, None])
    logs = R(-(away * away).sum(-1) / (2 * s**2))
    logs = R.moved(logs + (w / w.sum()).log() - x.shape[1] * (s.log() + math.log(2 * math.pi) / 2), x.shape[1] + 1.0)
    if what == "log_density":
        return R(logs.logsumexp(1))
    return R(softmax(R, logs, 1)[..., None] * away / (s**2)[None, :, None]).sum(1)


def logistic(R: Rounding, x, features, *, labels, rate: float, what: str) -> Tensor:
    signed = features * torch.tensor(labels, dtype=x.dtype)[:, None]
    w, log_a = x[:, :-1], x[:, -1]
    a, n = log_a.exp(), w.shape[1]
    margin = R.moved(w @ signed.T, (w.abs() @ signed.abs().T).detach())
    square = R(w * w).sum(1)
    if what == "score":
        inner = R(1 / (1 + margin.exp())) @ signed
        of_a = R.moved(-a * square / 2 + n / 2 - rate * a + 1, (a * square + n + rate * a).detach())
        return R.moved(torch.cat((inner - a[:, None] * w, of_a[:, None]), 1), signed.abs().sum())
    loss = _softplus(-margin).sum(1)
    prior = -a * square / 2 + n / 2 * (log_a - math.log(2 * math.pi))
    parts = (prior, math.log(rate) - rate * a, log_a, -loss)
    return R.moved(sum(parts), sum(p.detach().abs() for p in parts) + n)
