"""What a flow carries from step to step, and what a run gives back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gwf_fast.errors import NonFiniteError
from gwf_fast.nn import MLP
from gwf_fast.nn.functions import ACTIVATIONS
from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import check_kind

if TYPE_CHECKING:
    from gwf_fast.flows.jko import JKOFlow

Source = Tensor | Callable[[int], Tensor]
"""P_0: samples [N, D], or a callable n -> [n, D]; of a generator, its latent noise [N, L]."""


def check_source(particles: Tensor, dim: int, batch_size: int) -> None:
    """Samples of P_0: finite, [N, dim], with N at least 1 and the size of a minibatch."""
    if isinstance(particles, Tensor):
        check_kind("x0", particles)
    if not isinstance(particles, Tensor) or particles.ndim != 2 or particles.shape[1] != dim:
        got = list(particles.shape) if isinstance(particles, Tensor) else type(particles).__name__
        raise ValueError(f"x0 must be samples [N, {dim}], got {got}")
    if len(particles) == 0 or not particles.is_floating_point():
        raise ValueError(f"x0 must be floating-point samples, N > 0, got {particles.dtype}, N = {len(particles)}")
    if not particles.isfinite().all():
        raise ValueError("x0: contains NaN or infinity")
    if batch_size > len(particles):
        raise ValueError(f"batch_size: {batch_size} is larger than the pool of {len(particles)} particles")


_CHUNK = 1 << 16  # rows pushed at once: bounds the memory of the activations


@dataclass(frozen=True)
class StepRecord:
    """What one JKO step did.

    Attributes:
        step: k, from 1.
        loss: w2^2 / (2a) + value, the objective of the step.
        value: Estimate of F(P_k), up to the functional's constant.
        w2: sqrt(E |x - T x|^2), the distance moved; W2(P_k, P_{k-1}) where T is optimal.
        seconds: Wall time.
    """

    step: int
    loss: float
    value: float
    w2: float
    seconds: float


@dataclass(frozen=True, repr=False)
class FlowState:
    """Everything a flow needs to go on.

    Attributes:
        step: JKO steps done.
        seed: Seed of the whole run; with ``step`` it is the state of the generator.
        particles: Samples of P_k, [N, D].
        maps: T_1, ..., T_k; of a generator, G_k alone.
        critic: The critic after step k, or None.
        map_optimizer: ``state_dict`` of Adam for the last map; None before the first step.
        critic_optimizer: The same for the critic.
        history: One record a step.
        latents: Of a generator, the noise [N, L] whose images the particles are; else None.
    """

    step: int
    seed: int
    particles: Tensor
    maps: tuple[nn.Module, ...] = ()
    critic: nn.Module | None = None
    map_optimizer: dict[str, Any] | None = None
    critic_optimizer: dict[str, Any] | None = None
    history: tuple[StepRecord, ...] = ()
    latents: Tensor | None = None

    def __repr__(self) -> str:
        n, dim = self.particles.shape
        last = f", value {self.history[-1].value:.4g}" if self.history else ""
        return f"FlowState({self.step} steps, {n} particles in {dim} dimensions{last})"


@dataclass(frozen=True, repr=False)
class FlowResult:
    """The outcome of a run.

    Attributes:
        state: The last state; ``flow.run`` of a longer flow may go on from it.
        source: P_0 as it was given.
        flow: What was run; None where that isn't known.
    """

    state: FlowState
    source: Source
    flow: JKOFlow | None = None

    def __repr__(self) -> str:
        return f"FlowResult({repr(self.state).removeprefix('FlowState(')}"

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint, which ``gwf.load`` reads, and ``JKOFlow.resume`` goes on from.

        Args:
            folder: Is made; one that holds another run is refused.

        Raises:
            ValueError: If the result does not know its flow.
        """
        if self.flow is None:
            raise ValueError("save: this result was made by hand, without flow=")
        self.flow.save(self.state, folder, self.source)

    @property
    def particles(self) -> Tensor:
        """Samples of the last P_k, [N, D]."""
        return self.state.particles

    @property
    def history(self) -> tuple[StepRecord, ...]:
        """One record a JKO step."""
        return self.state.history

    @property
    def maps(self) -> tuple[nn.Module, ...]:
        """T_1, ..., T_k; of a generator, G_k alone."""
        return self.state.maps

    def push(self, z: Tensor) -> Tensor:
        """Carry samples of P_0 [N, D] through all maps; of a generator, G_k(z) for its noise z [N, L]."""
        return push(self.maps, z)

    def trajectory(self, z: Tensor) -> Tensor:
        """The same samples after 0, 1, ..., k maps, [k + 1, N, D].

        Raises:
            ValueError: If the flow is a generator, which keeps its last network only.
        """
        if self.state.latents is not None:
            raise ValueError("trajectory: a generator keeps its last network only; push z after each flow.step")
        rows = [z]
        for transport in self.maps:
            rows.append(push((transport,), rows[-1]))
        return torch.stack(rows)

    def sample(self, n: int) -> Tensor:
        """n new samples of the last P_k, [n, D]; P_0, or a generator's noise, must have been a callable.

        Raises:
            ValueError: If P_0 was given by samples: there are no new ones to draw.
        """
        if isinstance(self.source, Tensor):
            raise ValueError("sample: x0 was a tensor; give run() a callable n -> samples, or push() samples of P_0")
        return self.push(self.source(n))

    def log_density(self, x: Tensor, initial: Any = None) -> Tensor:
        """log P_K at x [N, D], where every map is invertible (``gwf.nn.ICNNGradient``), [N].

        log P_K(x) = log P_0(x_0) - sum_k log |det DT_k(x_{k-1})|, with x_{k-1} the inverse image of x_k.

        Args:
            x: Points.
            initial: log P_0, [N, D] -> [N], or an object with a ``log_density``; None for that of the potential whose
                ``sample`` the flow was run with.

        Raises:
            ValueError: If a map has no inverse, or log P_0 is not known.
        """
        initial = getattr(self.source, "__self__", None) if initial is None else initial
        log_density = getattr(initial, "log_density", initial)
        if not callable(log_density):
            raise ValueError("initial: log P_0 is not known; give it, or run the flow from the sample of a potential")
        for k, transport in enumerate(self.maps, 1):
            if not (hasattr(transport, "inverse") and hasattr(transport, "log_abs_det")):
                raise ValueError(
                    f"log_density: needs invertible maps such as gwf.nn.ICNNGradient; step {k} is a "
                    f"{type(transport).__name__}"
                )
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        with torch.no_grad():
            for transport in reversed(self.maps):
                x = transport.inverse(x)  # type: ignore[operator]
                total -= transport.log_abs_det(x)  # type: ignore[operator]
            return total + log_density(x)


@entry(differentiates=True)
def push(maps: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    """Carry x [N, D] through the maps, in evaluation mode, chunk by chunk."""
    for transport in maps:
        transport.eval()
    out = torch.empty_like(x)
    with torch.no_grad():
        for start in range(0, max(len(x), 1), _CHUNK):  # no rows at all still say the dimension
            rows = x[start : start + _CHUNK]
            for transport in maps:
                rows = transport(rows)
            if start == 0 and rows.shape[1:] != x.shape[1:]:  # a generator's noise has a dimension of its own
                out = rows.new_empty((len(x), *rows.shape[1:]))
            out[start : start + len(rows)] = rows
    return out


def require_finite(particles: Tensor) -> None:
    """Raise NonFiniteError if a particle is NaN or infinite, with their number."""
    if particles.sum().isfinite():  # one pass; what is not finite leaves its mark in a sum
        return
    if not particles.isfinite().all():
        count = int((~particles.isfinite()).any(-1).sum())
        raise NonFiniteError(f"{count} of {len(particles)} particles are not finite")


def copied(module: nn.Module) -> nn.Module:
    """A deep copy; of networks whose layers are PyTorch's own, without asking every attribute how it is copied."""
    return _copy(module, {}) if _is_plain(module) else copy.deepcopy(module)


_LAYERS = (MLP, nn.Linear, nn.PReLU, *{type(each.module()) for each in ACTIVATIONS.values()}, nn.ModuleList)
_FIXED = (bool, int, float, str, type(None), type)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module and its layers are of classes that have no copying of their own, and nothing that is shared."""
    parts = list(module.modules())
    if any(type(part) not in _LAYERS or part._buffers for part in parts):
        return False
    parameters = [p for part in parts for p in part._parameters.values()]
    return all(p is None or (type(p) is nn.Parameter and p.is_leaf) for p in parameters)


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """As ``copy.deepcopy`` would; memo is its."""
    if id(module) in memo:
        return memo[id(module)]
    new = memo[id(module)] = object.__new__(type(module))
    state = module.__getstate__() if isinstance(module, MLP) else module.__dict__
    for name, value in state.items():
        if name == "_parameters":
            new.__dict__[name] = type(value)((key, copy.deepcopy(p, memo)) for key, p in value.items())
        elif name == "_modules":
            new.__dict__[name] = type(value)((key, _copy(part, memo)) for key, part in value.items())
        else:
            new.__dict__[name] = _copied_value(value, memo)
    return new


def _copied_value(value: Any, memo: dict[int, Any]) -> Any:
    """What is neither a module nor a parameter: settings, mostly, and empty tables of hooks."""
    if isinstance(value, _FIXED) or (isinstance(value, tuple) and _is_fixed(value)):
        return value
    if type(value) is list:
        return [_copied_value(each, memo) for each in value]
    if type(value) in (dict, OrderedDict, set) and not value:
        return type(value)()
    return copy.deepcopy(value, memo)


def _is_fixed(values: tuple[Any, ...]) -> bool:
    return all(isinstance(each, _FIXED) or (isinstance(each, tuple) and _is_fixed(each)) for each in values)
