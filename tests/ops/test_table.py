"""The table of operations is true: of the modules, of what calls ask for, and of what the documentation says."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.ops import dispatch
from gwf_fast.ops.report import CALLED_FOR
from gwf_fast.ops.table import BACKENDS, OPERATIONS

ENTRIES = [(operation, backend) for operation, row in OPERATIONS.items() for backend in row.served_by]


def module_of(operation: str, backend: str):
    if BACKENDS[backend].absence() is not None and backend != "cuda":  # which imports without its extension
        pytest.skip(f"{backend}: {BACKENDS[backend].absence()}")
    return importlib.import_module(f"gwf_fast.kernels.{OPERATIONS[operation].served_by[backend].module}")


@pytest.mark.parametrize(("operation", "backend"), ENTRIES)
def test_modules_have_what_the_table_says(operation, backend):
    module = module_of(operation, backend)
    assert [name for name in OPERATIONS[operation].functions if not callable(getattr(module, name, None))] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_table_has_all_that_modules_have(backend):
    """A function that a backend's own modules define under the name of an operation is served, and so self-tested."""
    names = {row.served_by[backend].module for row in OPERATIONS.values() if backend in row.served_by}
    modules = [importlib.import_module(f"gwf_fast.kernels.{name}") for name in names if name != "keops.pairs"]
    for operation, row in OPERATIONS.items():
        if backend in row.served_by:
            continue
        for module in modules:
            own = [getattr(module, name, None) for name in row.functions]
            package = module.__name__.rsplit(".", 1)[0] if module.__name__.count(".") > 2 else module.__name__
            defined = all(f is not None and f.__module__.startswith(package) for f in own)
            assert not defined, f"{module.__name__} has {row.functions}, but {backend} is not in the row {operation!r}"


def points(n: int = 12, dim: int = 2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, dim, generator=generator), torch.randn(n + 3, dim, generator=generator)


X, Y = points()
K = gwf.Gaussian(1.0)
CALLS = {
    "kernel_sum": lambda: gwf.kernel_sum(X, Y, kernel=K),
    "kernel_gradient": lambda: gwf.kernel_gradient(X, Y, kernel=K),
    "kernel_logsumexp": lambda: gwf.kernel_logsumexp(X, Y, kernel=K),
    "kernel_average": lambda: gwf.kernel_average(X, Y, kernel=K),
    "mmd2": lambda: gwf.mmd2(X, Y, kernel=K),
    "energy_distance": lambda: gwf.energy_distance(X, Y),
    "parzen_log_density": lambda: gwf.parzen_log_density(X, Y, 1.0),
    "parzen_score": lambda: gwf.parzen_score(X, Y, 1.0),
    "ksd2": lambda: gwf.ksd2(X, -X, kernel=K),
    "svgd_direction": lambda: gwf.svgd_direction(50 * X, -X, kernel=K),
    "interaction_energy": lambda: gwf.interaction_energy(X, kernel=K),
    "interaction_velocity": lambda: gwf.interaction_velocity(X, Y, kernel=K),
    "forward_step": lambda: gwf.forward_step(X, 0.1, kernel=K),
    "blob_density": lambda: gwf.blob_density(X, 0.5),
    "blob_energy": lambda: gwf.blob_energy(X, 0.5, m=2.0),
    "blob_velocity": lambda: gwf.blob_velocity(X, 0.5, m=3.0),
    "sinkhorn": lambda: gwf.sinkhorn(X, Y, epsilon=1.0),
    "sinkhorn_divergence": lambda: gwf.sinkhorn_divergence(X, Y, epsilon=1.0),
    "barycentric_map": lambda: gwf.barycentric_map(X, Y, torch.zeros(len(Y)), epsilon=1.0),
    "sliced_energy_distance": lambda: gwf.sliced_energy_distance(X, Y, n_projections=4),
    "sliced_wasserstein2": lambda: gwf.sliced_wasserstein2(X, Y, n_projections=4),
    "drift.gmd": lambda: gwf.drift.gmd(X.double().requires_grad_(), Y.double(), temperature=1.0),
    "drift.gmd_multi": lambda: gwf.drift.gmd_multi(X, Y, negatives=X, temperatures=(0.5, 1.0)),
    "drift.mmd": lambda: gwf.drift.mmd(X, Y, kernel=K),
    "drift.energy": lambda: gwf.drift.energy(X, Y),
    "drift.parzen_kl": lambda: gwf.drift.parzen_kl(X, Y, 1.0),
    "drift.f_divergence": lambda: gwf.drift.f_divergence(X, Y, 1.0, divergence="js"),
    "drift.sinkhorn": lambda: gwf.drift.sinkhorn(X, Y, epsilon=1.0),
    "drift.sliced_wasserstein": lambda: gwf.drift.sliced_wasserstein(X, Y, n_projections=4),
}


@pytest.mark.parametrize("name", CALLED_FOR)
def test_calls_ask_for_what_explain_says(name, monkeypatch):
    """Nothing that a function asks for is missing from what ``explain`` and the documentation say of it."""
    asked = set()
    choose = dispatch.resolve

    def resolve(requested, device, dtype, formula=False, operation=None, dim=None):
        asked.add(operation if requested is None else None)  # else an operation is made of others
        return choose(requested, device, dtype, formula, operation, dim)

    loaded = dispatch.load
    for module in (dispatch, gwf.ops):
        monkeypatch.setattr(module, "resolve", resolve)
    for path in ("gwf_fast.drift.joint", "gwf_fast.measures.directional"):
        module = importlib.import_module(path)
        monkeypatch.setattr(module, "load", lambda name, of=None: asked.add(of) or loaded(name, of))
    importlib.import_module("gwf_fast.measures.directional")._compiled.cache_clear()
    with torch.no_grad():
        CALLS[name]()
    assert asked - {None} <= set(CALLED_FOR[name])
    assert asked


def test_every_function_that_takes_a_backend_is_known():
    for space, prefix in ((gwf, ""), (gwf.drift, "drift.")):
        for name in space.__all__:
            function = getattr(space, name)
            if inspect.isfunction(function) and "backend" in inspect.signature(function).parameters:
                assert prefix + name in CALLED_FOR


@pytest.mark.parametrize("function", [torch.sin, gwf.nn.MLP, gwf.median_bandwidth, gwf.drift.critic, len, "kernel_sum"])
def test_explain_refuses_what_it_does_not_know(function):
    with pytest.raises(TypeError, match="explain: expected a function that a backend serves, such as") as caught:
        gwf.explain(function, X, Y)
    assert "\n" not in str(caught.value)


def test_explain_of_a_function_of_several_operations():
    text = gwf.explain(gwf.svgd_direction, X, -X, kernel=K)
    assert "svgd_direction, sum on cpu, torch.float32: cpp" in text
    assert "svgd_direction, gradient on cpu, torch.float32: cpp" in text
    assert "ksd2 on cpu, torch.float32: cpp" in gwf.explain(gwf.ksd2, X, -X, kernel=K)
    assert "triton: " in gwf.explain(gwf.ksd2, X, -X, kernel=K)


def test_the_documentation_has_the_table():
    """Printed by ``python bench/gpu_table.py --operations``."""
    from pathlib import Path

    from gwf_fast.ops.report import documented

    page = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
    assert page.read_text() == documented(page.read_text())
