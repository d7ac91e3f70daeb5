"""Objects to JSON and tensors, and back: how a checkpoint remembers functionals and networks without pickle.

Only classes in the registry are written and read, field by field, so that reading a file can't run code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor

from gwf_fast import potentials
from gwf_fast.flows.networks import is_changed
from gwf_fast.flows.training import Training
from gwf_fast.functionals import adversarial, energies
from gwf_fast.functionals import base as functional
from gwf_fast.nn import MLP, ICNNGradient

_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        functional.Sum,
        functional.Potential,
        functional.KL,
        functional.FDivergence,
        functional.JensenShannon,
        functional.SquaredMMD,
        adversarial.IPM,
        adversarial.DonskerVaradhan,
        adversarial.MMDUnbalanced,
        energies.Interaction,
        energies.GeneralizedEntropy,
        potentials.Gaussian,
        potentials.GaussianMixture,
        potentials.BayesianLogisticRegression,
        Training,
    )
}


class NotPortableError(TypeError):
    """The object holds something that is code: a function, or a class of the user's own."""


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """JSON for a value; its tensors go into ``tensors`` under names that begin with ``name``.

    Raises:
        NotPortableError: If the value holds a function or an unknown class.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, (tuple, list)):
        return [pack(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
    if type(value) is MLP and is_changed(value):
        raise NotPortableError(f"{name} (an MLP whose layers were changed or frozen) can't be stored")
    if type(value) in (MLP, ICNNGradient):
        return {"class": type(value).__name__, "arguments": value.config}
    if _known(type(value).__name__, type(value).__module__) is type(value):
        arguments = {
            f.name: pack(getattr(value, f.name), tensors, f"{name}.{f.name}")
            for f in dataclasses.fields(value)  # type: ignore[arg-type]
            if f.init
        }
        return {"class": type(value).__name__, "module": type(value).__module__, "arguments": arguments}
    raise NotPortableError(f"{name} ({type(value).__name__}) can't be stored")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What :func:`pack` was given; lists come back as tuples.

    Raises:
        ValueError: If the JSON names an unknown class or a missing tensor.
    """
    if isinstance(value, list):
        return tuple(unpack(item, tensors) for item in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        if value["tensor"] not in tensors:
            raise ValueError(f"the tensor {value['tensor']!r} is missing")
        return tensors[value["tensor"]]
    if value.get("class") == "MLP":
        return MLP(**value["arguments"])
    if value.get("class") == "ICNNGradient":
        return ICNNGradient(**value["arguments"])
    cls = _known(value.get("class"), value.get("module"))
    if cls is None:
        raise ValueError(f"unknown class {value.get('class')!r}")
    return cls(**{k: unpack(v, tensors) for k, v in value["arguments"].items()})


def pack_plain(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """JSON for data as a module's ``get_extra_state`` may give: numbers, text, tensors, and containers of them.

    Unlike :func:`pack` it knows no classes, and tells tuples from lists and takes dictionaries of any such keys.

    Raises:
        NotPortableError: If the value holds anything else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if type(value) in (tuple, list):
        items = [pack_plain(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, dict):
        parts = (pack_plain(part, tensors, f"{name}.{i}") for i, part in enumerate(chain(*value.items())))
        return {"dict": list(zip(parts, parts, strict=True))}
    raise NotPortableError(
        f"{name.removeprefix('in:')} ({type(value).__name__}) can't be stored: it is neither a tensor nor plain data"
    )


def unpack_plain(value: Any, tensors: Mapping[str, Any]) -> Any:
    """What :func:`pack_plain` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {unpack_plain(key, tensors): unpack_plain(item, tensors) for key, item in content}
    items = [unpack_plain(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _known(name: Any, module: Any) -> type | None:
    """The class of that name, if it is one that may be written and read."""
    if module not in ("gwf_fast.pairs.kernels", "gwf_fast.radial"):  # the latter in files of version 0.1
        return _CLASSES.get(name)
    from gwf_fast.pairs import kernels as radial

    cls = vars(radial).get(name)
    is_kernel = isinstance(cls, type) and issubclass(cls, radial.Kernel) and dataclasses.is_dataclass(cls)
    return cls if is_kernel else None
