"""Multilayer perceptrons: maps and critics of the flows."""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gwf_fast.checkpoint.portable import portable
from gwf_fast.nn.functions import ACTIVATIONS, SETTINGS, ActivationName, Output, output_activation
from gwf_fast.ops.mlp import MLPSpec, is_served, mlp, value_and_gradient
from gwf_fast.ops.modes import PLAIN, is_eager, is_strided, is_transformed
from gwf_fast.ops.report import SUMMARIES, arguments, explained_by, first_tensor, header, others
from gwf_fast.ops.table import BACKENDS, COMPILED


def _explain(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    network: MLP = fn.__self__  # type: ignore[attr-defined]
    x = first_tensor("MLP", arguments(fn, args, kwargs))
    return explain_network(f"MLP.{fn.__name__}", x, "mlp", network.why_not_compiled(x), max(network.spec.sizes))


def explain_network(name: str, x: Tensor, operation: str, reason: str | None, widest: int) -> list[str]:
    """Who runs an operation on a network, where ``reason`` says why it has to be its own modules."""
    kind = (x.device, x.dtype, False, operation, widest)
    refusals = {other: backend.refusal(*kind) for other, backend in BACKENDS.items()}
    if reason is None:
        return [header(name, x, COMPILED[x.device.type], False), *others(COMPILED[x.device.type], refusals, SUMMARIES)]
    able = {other: why or "does not serve this network" for other, why in refusals.items()}
    return [header(name, x, "torch", False, reason), *others("torch", able, SUMMARIES)]


@portable
class MLP(nn.Sequential):
    """Linear layers with an activation between them.

    Parameters, their initialisation and ``state_dict`` are those of the ``nn.Sequential`` that it prints as. On the CPU
    in float32 and float64, with widths to 512, forward, backward and double backward are one compiled call each, with
    tiles of the batch going through the whole network while they are in cache; derivatives in x and in the parameters
    are exact to second order, and results do not depend on the number of threads. Backward repeats the forward pass
    instead of storing it. On CUDA devices, with widths to 128 and bfloat16 and float16 too, forward and backward are a
    Triton kernel each, the whole network in one program for each tile of the batch; double backward is PyTorch's.
    Elsewhere (other devices and dtypes, ``torch.func`` transforms, autocast) its modules run one by one. So they do
    once a layer was replaced, added or changed, or has a hook, as old-style ``spectral_norm``, ``weight_norm`` and
    ``prune`` have: the network is always what it prints as. Parametrisations (``torch.nn.utils.parametrizations``)
    stay compiled.

    A residual network x + net(x) starts as the identity: its last layer is initialised to zero.

    Args:
        sizes: Widths from input to output, at least two.
        activation: One of ``ACTIVATIONS``, between the layers. PReLU learns one slope a layer.
        output: An activation after the last layer: one of ``ACTIVATIONS`` but "prelu", "square", "expm1",
            ``("scaled_sigmoid", scale)``, or the name of an f-divergence, ``("alpha", a)`` with its parameter, for the
            map onto the domain of its conjugate. None: no activation.
        residual: Whether to add the input; sizes[0] must then equal sizes[-1].

    Raises:
        ValueError: If a name is unknown, or sizes do not fit.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: ActivationName = "prelu",
        output: Output = None,
        residual: bool = False,
    ) -> None:
        sizes = tuple(int(s) for s in sizes)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be at least two positive widths, got {list(sizes)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if residual and sizes[0] != sizes[-1]:
            raise ValueError(f"residual: needs as many outputs as inputs, got sizes {list(sizes)}")
        hidden = ACTIVATIONS[activation]
        last = None if output is None else output_activation(output)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            if i:
                layers.append(hidden.module())
            layers.append(linear := nn.Linear(before, after))
        if residual:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        if last is not None:
            layers.append(last.module())
        super().__init__(*layers)
        self._made_of = [
            (type(layer), [(name, getattr(layer, name)) for name in SETTINGS.get(type(layer), ())]) for layer in layers
        ]
        self.shapes = [tuple(parameter.shape) for parameter in self.parameter_list()]  # that the spec asks for
        written = output if output is None or isinstance(output, str) else list(output)
        self.config: dict[str, Any] = {
            "sizes": list(sizes),
            "activation": activation,
            "output": written,
            "residual": bool(residual),
        }
        depth = len(sizes) - 1
        functions = [hidden.compiled] * (depth - 1) + [("identity", 0.0) if last is None else last.compiled]
        self.spec = MLPSpec(
            sizes,
            tuple(name for name, _ in functions),
            tuple(constant for _, constant in functions),
            (activation == "prelu",) * (depth - 1) + (False,),
            bool(residual),
        )

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor:
            """As ``forward``; ``nn.Module`` says Any."""
            ...

    @explained_by(_explain)
    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to x [*B, sizes[0]]; returns [*B, sizes[-1]]."""
        parameters = self._compiled_parameters(x)
        if parameters is not None:
            out = mlp(x.reshape(-1, x.shape[-1]), parameters, self.spec)
            return out.view(*x.shape[:-1], out.shape[-1])
        y = super().forward(x)
        return torch.add(x, y) if self.spec.residual else y

    @explained_by(_explain)
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The network as a function f of x [*B, D], and grad f, together; both differentiable once more.

        Returns:
            f [*B] and its gradient [*B, D].

        Raises:
            ValueError: If the network has more than one output.
        """
        parameters = self._compiled_parameters(x)
        if parameters is not None and self.spec.sizes[-1] == 1 and not torch.compiler.is_compiling():
            value, gradient = value_and_gradient(x.reshape(-1, x.shape[-1]), parameters, self.spec)
            return value.view(x.shape[:-1]), gradient.view(x.shape)
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            point = x if x.requires_grad else x.detach().requires_grad_()
            out = self(point)
            if out.shape[-1] != 1:
                raise ValueError(f"value_and_grad: needs a network with one output, got {out.shape[-1]}: {self.config}")
            value = out[..., 0]
            (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=graph)
        return (value, gradient) if graph else (value.detach(), gradient)

    def matches_spec(self) -> bool:
        """Whether the modules are still those that it was made with, parametrised or not, and nothing hooks into them.

        Where they are not, ``spec`` and ``config`` say nothing about the network.
        """
        layers = self._modules.values()
        if len(layers) != len(self._made_of):
            return False
        for layer, (kind, settings) in zip(layers, self._made_of, strict=True):
            if type(layer) is not kind and not _is_parametrised(layer, kind):
                return False
            if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
                return False
            if "forward" in layer.__dict__:  # replaced on this very module
                return False
            for name, value in settings:
                if getattr(layer, name) != value:
                    return False
        return True

    def is_changed(self) -> bool:
        """Whether it has layers, parametrisations or frozen parameters that a new one would not have."""
        parametrised = any(parametrize.is_parametrized(module) for module in self.modules())
        return parametrised or not self.matches_spec() or not all(p.requires_grad for p in self.parameters())

    def portable_arguments(self) -> dict[str, Any]:
        """What makes such a network; see ``checkpoint/portable.py``."""
        if self.is_changed():
            raise ValueError("an MLP whose layers were changed or frozen")
        return self.config

    def parameter_list(self) -> list[Tensor]:
        """Weight, bias and slope of each layer in turn, as the compiled passes take them.

        Read anew each time, so that parametrisations (``torch.nn.utils.parametrizations``) hold.
        """
        parameters: list[Tensor] = []
        for layer in self:
            if isinstance(layer, nn.Linear):
                parameters += (layer.weight, layer.bias)
            elif isinstance(layer, nn.PReLU):
                parameters.append(layer.weight)
        return parameters

    def objective_parameters(self, x: Tensor) -> list[Tensor] | None:
        """What the compiled pass of :func:`critic_objective` takes; None where it can't take this network at x.

        It takes networks with one raw output, where the compiled path serves.
        """
        is_raw = self.config["output"] is None and not self.spec.residual and self.spec.sizes[-1] == 1
        return self._compiled_parameters(x) if is_raw and x.device.type == "cpu" else None

    def _compiled_parameters(self, x: Tensor) -> list[Tensor] | None:
        """Parameters for the compiled path; None where the modules have to run: they say what does not fit."""
        if type(x) is Tensor and type(self) is MLP and x.layout is torch.strided and is_eager():
            parameters = self._planned(x)
            if parameters is not None:
                return parameters
        if not self.matches_spec() or type(self).forward is not MLP.forward or not _is_plain(x):
            return None
        self._check(x)
        served = (
            is_served(x.device.type, x.dtype, max(self.spec.sizes))
            and not is_transformed()
            and not torch.is_autocast_enabled(x.device.type)
        )
        if not served:
            return None
        parameters = self.parameter_list()
        dtype, device = x.dtype, x.device
        for parameter, shape in zip(parameters, self.shapes, strict=True):
            if (
                parameter is None  # a layer without a bias
                or parameter.shape != shape
                or parameter.dtype is not dtype
                or parameter.device != device
            ):
                return None
        return parameters

    def why_not_compiled(self, x: Tensor) -> str | None:
        """Why the modules have to run themselves at x, in plain PyTorch; None where compiled passes serve."""
        if not self.matches_spec() or type(self).forward is not MLP.forward:
            return "the network's own modules, which were replaced, changed or hooked into"
        if not is_served(x.device.type, x.dtype, max(self.spec.sizes)):
            return f"the only one for {x.dtype} on {x.device} and layers of up to {max(self.spec.sizes)}"
        if torch.is_autocast_enabled(x.device.type):
            return "the network's own modules, to which autocast means other precisions"
        if self._compiled_parameters(x) is None:
            return "the network's own modules: parameters have another shape, dtype or device, or x is transformed"
        return None

    def _planned(self, x: Tensor) -> list[Tensor] | None:
        """What _compiled_parameters comes to for most calls, in a microsecond; None where it has to be asked.

        A call may be of a few microseconds: nothing here looks up an attribute of a module.
        """
        plan: _Plan | None = self.__dict__.get("_plan")
        if plan is None:
            kinds = [kind for kind, _ in self._made_of]
            if not self.matches_spec() or list(map(type, self)) != kinds:  # parametrised
                return None
            plan = _Plan.of(list(self), self._made_of)
            self._plan: _Plan | None = plan
        if (
            tuple(self._modules.values()) != plan.layers
            or tuple(map(type, plan.layers)) != plan.types
            or any(plan.hooks)
            or any(map(operator.contains, plan.attributes, _FORWARD))
            or [at.get(name) for at, name, _ in plan.settings] != [value for *_, value in plan.settings]
        ):
            self.__dict__.pop("_plan", None)
            return None
        dtype, device = x.dtype, x.device
        if not x.ndim or x.shape[-1] != self.spec.sizes[0] or torch.is_autocast_enabled(device.type):
            return None
        if not is_served(device.type, dtype, plan.widest):
            return None
        parameters: list[Any] = [at.get(name) for at, name in plan.slots]
        for parameter, shape in zip(parameters, self.shapes, strict=True):
            if (
                parameter is None
                or parameter.shape != shape
                or parameter.dtype is not dtype
                or parameter.device != device
            ):
                return None
        return parameters

    def __getstate__(self) -> dict[str, Any]:
        """All but what is looked up anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def _check(self, x: Tensor) -> None:
        weight, width = self[0].bias, self.spec.sizes[0]  # the weight may be a parametrisation, which counts its calls
        if x.ndim < 1 or x.shape[-1] != width:
            raise ValueError(f"x must have shape [*B, {width}] for sizes {self.config['sizes']}, got {list(x.shape)}")
        if weight is None or torch.is_autocast_enabled(x.device.type):
            return
        if x.dtype != weight.dtype:
            raise TypeError(f"x must have the dtype of the network, {weight.dtype}, got {x.dtype}")
        if x.device != weight.device:
            raise ValueError(f"x must be on the device of the network, {weight.device}, got {x.device}")

    @overload
    def __getitem__(self, index: slice) -> nn.Sequential: ...
    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    def __getitem__(self, index: slice | int) -> nn.Module:
        """A layer; or some of them, as an ``nn.Sequential``: part of this network is not one of its kind."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


class _Plan(NamedTuple):
    """Where a network's modules keep what decides whether they are those of its spec, and their parameters."""

    layers: tuple[nn.Module, ...]
    types: tuple[type, ...]
    hooks: tuple[dict[int, Any], ...]
    attributes: tuple[dict[str, Any], ...]
    settings: tuple[tuple[dict[str, Any], str, Any], ...]
    slots: tuple[tuple[dict[str, nn.Parameter | None], str], ...]
    widest: int

    @classmethod
    def of(cls, layers: list[nn.Module], made_of: list[tuple[type, list[tuple[str, Any]]]]) -> _Plan:
        """Of modules that are what the spec says."""
        kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
        slots: list[tuple[dict[str, nn.Parameter | None], str]] = []
        widest = 0
        for layer in layers:
            if isinstance(layer, nn.Linear):
                slots += ((layer._parameters, "weight"), (layer._parameters, "bias"))
                widest = max(widest, layer.in_features, layer.out_features)
            elif isinstance(layer, nn.PReLU):
                slots.append((layer._parameters, "weight"))
        return cls(
            tuple(layers),
            tuple(map(type, layers)),
            tuple(getattr(layer, kind) for layer in layers for kind in kinds),
            tuple(layer.__dict__ for layer in layers),
            tuple((layer.__dict__, *s) for layer, (_, settings) in zip(layers, made_of, strict=True) for s in settings),
            tuple(slots),
            widest,
        )


_FORWARD = itertools.repeat("forward")


def _is_plain(x: Tensor) -> bool:
    """Whether compiled passes may see x; its modules have rules of their own for sparse, nested and other kinds."""
    dense = isinstance(x, Tensor) and not x.is_nested and is_strided(x) and not x.is_meta
    return dense and (type(x) in PLAIN or not is_eager())


def _is_parametrised(layer: nn.Module, kind: type) -> bool:
    """Whether a layer is of a class that a parametrisation made of another."""
    return type(layer).__bases__ == (kind,) and parametrize.is_parametrized(layer)
