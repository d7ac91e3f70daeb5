"""Objects to JSON and tensors, and back: how a checkpoint remembers functionals and networks without pickle.

Only classes marked with :func:`portable` are written and read, field by field, and no module is imported for a file, so
that reading one can't run code.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor

_Class = TypeVar("_Class", bound=type)

_MARK = "_is_portable"

_WERE = {
    "gwf_fast.functional": "gwf_fast.functionals.base",
    "gwf_fast.adversarial": "gwf_fast.functionals.adversarial",
    "gwf_fast.energies": "gwf_fast.functionals.energies",
    "gwf_fast.potentials": "gwf_fast.potentials",
    "gwf_fast.training": "gwf_fast.flows.training",
    "gwf_fast.radial": "gwf_fast.pairs.kernels",
}
"""Modules that files of version 0.1 name, and where their classes are."""

_NAMELESS = ("gwf_fast.nn.mlp", "gwf_fast.nn.icnn")
"""Where the classes are that those files name without a module."""


def portable(cls: _Class) -> _Class:
    """Class decorator: objects of this very class may be written to a checkpoint, and read from one.

    It is a dataclass, written field by field, and may have ``former_fields(fields)``, which makes today's fields of
    those in older files. Or it has ``portable_arguments()``, which gives its arguments as JSON and raises ValueError
    where an object made of them would be another. The module of a class of the user's own has to be imported before a
    file that names it is read.
    """
    setattr(cls, _MARK, True)
    return cls


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
    cls = type(value)
    if _known(cls.__name__, cls.__module__) is not cls:
        raise NotPortableError(f"{name} ({cls.__name__}) can't be stored")
    if hasattr(cls, "portable_arguments"):
        try:
            arguments = value.portable_arguments()
        except ValueError as reason:
            raise NotPortableError(f"{name} ({reason}) can't be stored") from None
    else:
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        arguments = {field: pack(getattr(value, field), tensors, f"{name}.{field}") for field in fields}
    return {"class": cls.__name__, "module": cls.__module__, "arguments": arguments}


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
    cls = _known(value.get("class"), value.get("module"))
    if cls is None:
        raise ValueError(f"unknown class {value.get('class')!r}")
    arguments = value["arguments"]
    if not hasattr(cls, "portable_arguments"):
        arguments = {field: unpack(item, tensors) for field, item in arguments.items()}
        if hasattr(cls, "former_fields"):
            arguments = cls.former_fields(arguments)
    return cls(**arguments)


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
    for home in (_WERE.get(module, module),) if module else _NAMELESS:
        cls = vars(sys.modules[home]).get(name) if home in sys.modules else None
        if isinstance(cls, type) and vars(cls).get(_MARK):
            return cls
    return None
