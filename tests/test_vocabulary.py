"""One vocabulary of arguments, that of CONTRIBUTING.md, over all that is public; and what was called otherwise once."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast import compat

PAGE = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()
PUBLIC = {"": gwf, "drift.": gwf.drift, "nn.": gwf.nn, "potentials.": gwf.potentials, "presets.": gwf.presets}
PUBLIC["distributed."] = gwf.distributed


def written() -> set[str]:
    """The names in the tables of CONTRIBUTING.md."""
    section = PAGE.split("## Names of arguments")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.split("\n") if line.startswith("| ") and "---" not in line]
    cells = [row[2] if len(row) == 4 else row[1] for row in rows]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def calls(prefix: str, space: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes as one calls them, and their public methods, by name."""
    for name in space.__all__:
        found = getattr(space, name)
        if inspect.isfunction(found):
            yield prefix + name, found
        elif inspect.isclass(found) and not issubclass(found, Exception):
            yield prefix + name, found
            for method in vars(found):
                value = getattr(found, method)
                if not method.startswith("_") and (inspect.isfunction(value) or inspect.ismethod(value)):
                    yield f"{prefix}{name}.{method}", value


CALLS = [call for prefix, space in PUBLIC.items() for call in calls(prefix, space)]
ARGUMENTS = [
    (name, parameter)
    for name, call in CALLS
    for parameter in inspect.signature(call).parameters.values()
    if parameter.name not in ("self", "cls")
]

OPTIONAL = "Tensor | None", None, "keyword"
RULES: dict[str, tuple[str, object, str]] = {
    "x_weights": OPTIONAL,
    "y_weights": OPTIONAL,
    "negatives_weights": OPTIONAL,
    "y_log_weights": OPTIONAL,
    "negatives_log_weights": OPTIONAL,
    "x_lengths": OPTIONAL,
    "y_lengths": OPTIONAL,
    "negatives_lengths": OPTIONAL,
    "negatives": OPTIONAL,
    "directions": OPTIONAL,
    "out": OPTIONAL,
    "backend": ("BackendName | None", None, "keyword"),
    "group": ("ProcessGroup | None", None, "keyword"),
    "engine": ("EngineName | None", None, "keyword"),
    "n_projections": ("int | None", None, "keyword"),
    "sampling": ("Sampling", "orthogonal", "keyword"),
    "exclude_self": ("bool", False, "keyword"),
    "unbiased": ("bool", False, "keyword"),
    "kernel": ("Kernel", inspect.Parameter.empty, "keyword"),
    "epsilon": ("float", inspect.Parameter.empty, "keyword"),
    "marginal_strength": ("float | None", None, "keyword"),
    "scaling": ("float | None", None, "keyword"),
    "tolerance": ("float", 1e-6, "keyword"),
    "max_iterations": ("int", 100, "keyword"),
    "exponent": ("float", 1.0, "keyword"),
    "seed": ("int", 0, "keyword"),
    "method": ("Method", "exact", "keyword"),
    "x": ("Tensor", inspect.Parameter.empty, "positional"),
    "y": ("Tensor", inspect.Parameter.empty, "positional"),
    "generator": ("torch.Generator | None", None, "keyword"),
}
"""What is true of a name wherever a function has it."""

OF_OBJECTS = ("n_projections", "sampling", "directions", "engine", "seed", "exponent")
"""What is true in classes too, but for the position; they are made of kernels and the like as it suits them."""

EXCEPTIONS = {
    ("drift.gmd", "exclude_self"): "bool | None",  # None: by whether there are negatives
    ("drift.coupling", "exclude_self"): "bool | None",  # likewise
    ("ksd2", "unbiased"): True,  # fixed by the contract, as False is for mmd2
    ("with_error", "method"): "sliced",  # the only one with an error
    ("FlowState", "seed"): inspect.Parameter.empty,  # a state is of some run
    ("presets.gmmn", "kernel"): "Kernel | None",  # None: the mixture of the paper
    ("nn.ICNNGradient.inverse", "tolerance"): None,  # by precision
}
"""Where a rule does not hold, each with its reason."""

CLASSES = {name for name, call in CALLS if inspect.isclass(call)}


def test_every_argument_is_in_the_vocabulary() -> None:
    used = {parameter.name for _, parameter in ARGUMENTS}
    assert sorted(used - written()) == []
    assert sorted(written() - used) == []


def test_names_mean_one_thing() -> None:
    wrong = []
    for name, parameter in ARGUMENTS:
        if parameter.name not in RULES or (name, parameter.name) in EXCEPTIONS:
            continue
        annotation, default, way = RULES[parameter.name]
        of_object = {name, name.rpartition(".")[0]} & CLASSES
        if of_object and parameter.name not in OF_OBJECTS:
            continue
        found = "keyword" if parameter.kind is parameter.KEYWORD_ONLY else "positional"
        found = way if of_object else found
        if (parameter.annotation, parameter.default, found) != (annotation, default, way):
            wrong.append(f"{name}: {parameter} ({found})")
    assert wrong == []


def test_exceptions_are_exceptions() -> None:
    known = {(name, parameter.name): parameter for name, parameter in ARGUMENTS}
    for key, value in EXCEPTIONS.items():
        assert value in (known[key].annotation, known[key].default)
        assert (known[key].annotation, known[key].default) != RULES[key[1]][:2]


def test_a_choice_of_backend_comes_last() -> None:
    for name, call in CALLS:
        names = list(inspect.signature(call).parameters)
        assert "backend" not in names or names[-1] == "backend", name


# ---------------------------------------------------------------------------------------------- former names

X = torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(0))
ONES = torch.rand(1, 12, generator=torch.Generator().manual_seed(1)) + 0.5
FORMER = {
    ("blob_density", "masses"): (lambda **o: gwf.blob_density(X, 0.5, **o), "weights", ONES),
    ("blob_velocity", "masses"): (lambda **o: gwf.blob_velocity(X, 0.5, **o), "weights", ONES),
    ("drift.gmd_multi", "negative_weights"): (
        lambda **o: gwf.drift.gmd_multi(X, X, negatives=X + 1, **o).velocity,
        "negatives_weights",
        ONES,
    ),
}


@pytest.mark.parametrize("key", FORMER, ids=[".".join(key) for key in FORMER])
def test_former_names_go_on(key: tuple[str, str]) -> None:
    call, now, value = FORMER[key]
    function = key[0].removeprefix("drift.")
    with pytest.warns(DeprecationWarning, match=rf"^{function}: {key[1]}= is deprecated; use {now}=$") as caught:
        got = call(**{key[1]: value})
    assert caught[0].filename == __file__
    assert torch.equal(got, call(**{now: value})) and not torch.equal(got, call())
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(TypeError, match=rf"{function}\(\) got {now} twice: {key[1]} is its former name"),
    ):
        call(**{key[1]: value, now: value})


def test_every_former_name_is_tried() -> None:
    """And is in no signature: a type checker says the new one."""
    found = {(name, old) for name, call in CALLS for old in getattr(call, "renamed_from", ())}
    assert found == set(FORMER)
    assert not {old for _, old in found} & {parameter.name for _, parameter in ARGUMENTS}


# ---------------------------------------------------------------------------------------------- __all__

MODULES = [
    gwf, gwf.distributed, gwf.drift, gwf.nn, gwf.potentials, gwf.presets, compat,
    *(__import__(f"gwf_fast.compat.{each.name}", fromlist=["*"]) for each in pkgutil.iter_modules(compat.__path__)),
    *(__import__(f"gwf_fast.{name}", fromlist=["*"]) for name in ("errors", "transport", "ops")),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=[module.__name__ for module in MODULES])
def test_public_modules_say_what_they_export(module: ModuleType) -> None:
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len(set(module.__all__)) == len(module.__all__)
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    }
    assert own - set(module.__all__) == set()


def test_messages_have_one_form() -> None:
    """ "{argument} must be {expected}, got {value}", where it says what is expected."""
    package = Path(gwf.__file__).parent
    other = re.compile(r"""["'][^"']*(: expected|: unknown|, expected one of|is not available, )""")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.parent.name not in ("selftest",)
        for line in path.read_text().splitlines()
        if other.search(line) and "experiment" not in line
    ]
    assert found == []
