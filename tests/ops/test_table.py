"""The table of operations is true: of the modules, of what calls ask for, and of what the documentation says."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.ops import dispatch
from gwf_fast.ops.report import CALLED_FOR
from gwf_fast.ops.table import BACKENDS, OPERATIONS
from gwf_fast.pairs import methods

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
    "kernel_min": lambda: gwf.kernel_min(X, Y),
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
    "transport_cost": lambda: gwf.transport_cost(X, Y, epsilon=1.0, form="linear"),
    "sliced_energy_distance": lambda: gwf.sliced_energy_distance(X, Y, n_projections=4),
    "sliced_wasserstein": lambda: gwf.sliced_wasserstein(X, Y, n_projections=4),
    "sliced_wasserstein2": lambda: gwf.sliced_wasserstein2(X, Y, n_projections=4),
    "max_sliced_wasserstein": lambda: gwf.max_sliced_wasserstein(X, Y),
    "spherical_sliced_wasserstein": lambda: gwf.spherical_sliced_wasserstein(
        *(torch.nn.functional.normalize(t, dim=-1) for t in (X, Y)), n_projections=4
    ),
    "drift.coupling": lambda: gwf.drift.coupling(X, Y, temperature=1.0, coupling="sinkhorn"),
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
def test_calls_ask_for_what_explain_says(name, monkeypatch, the_long_way):
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
    with torch.no_grad():
        assert name in CALLS, "CALLED_FOR has a function that is called nowhere here: add a call of it to CALLS above"
        CALLS[name]()
    assert asked - {None} <= set(CALLED_FOR[name])
    assert asked


def test_every_function_that_takes_a_backend_is_known():
    for space, prefix in ((gwf, ""), (gwf.drift, "drift.")):
        for name in space.__all__:
            function = getattr(space, name)
            if inspect.isfunction(function):  # a choice of backend wherever there is one, and nowhere else
                has = "backend" in inspect.signature(function).parameters
                assert has == (prefix + name in CALLED_FOR), (
                    f"{prefix}{name}: CALLED_FOR in gwf_fast/ops/report.py lists what takes a backend, and nothing else"
                )


REFUSED = [torch.sin, gwf.nn.MLP, gwf.median_bandwidth, gwf.drift.critic, len, print, "kernel_sum", torch.nn.Tanh()]


@pytest.mark.parametrize("function", REFUSED)
def test_explain_refuses_what_it_does_not_know(function):
    with pytest.raises(TypeError, match="fn must be a function that a backend serves, such as") as caught:
        gwf.explain(function, X, Y)
    name = function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
    assert "\n" not in str(caught.value)
    assert f".{name};" in str(caught.value) or isinstance(function, str)


def test_explain_wants_arguments_of_the_call():
    with pytest.raises(TypeError, match="no tensor among the arguments of kernel_sum"):
        gwf.explain(gwf.kernel_sum)
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernels'"):
        gwf.explain(gwf.mmd2, X, Y, kernels=K)


SUMS = [gwf.kernel_sum, gwf.kernel_gradient, gwf.interaction_velocity]


@pytest.mark.parametrize("function", SUMS)
def test_explain_knows_methods(function):
    def chosen(x, **options):
        return gwf.explain(function, x, x, kernel=K, **options).split("\n")

    head = f"{function.__name__} on cpu, torch.float32: "
    assert chosen(X)[0] == f"{head}cpp (first in the order of preference that can serve)"
    assert chosen(X, backend="torch")[0] == f"{head}torch (asked for)"
    assert chosen(X, method="auto", backend="torch")[0] == f"{head}torch (asked for)"
    assert chosen(X, method="nufft")[0] == f"{head}nufft (asked for)"
    assert chosen(X, method=gwf.NUFFT(1e-3))[1:] == [
        "  exact: could serve, sums over all pairs by a backend",
        "  sliced: could serve, estimates by random directions",
    ]
    state = torch.get_rng_state()
    lines = chosen(X.repeat(1, 5), method=gwf.Sliced(9))
    assert lines[0] == f"{head}sliced (asked for)" and "  nufft: needs D <= 3" in lines[2]
    assert torch.equal(torch.get_rng_state(), state)  # no direction is drawn
    few, many, wide = (chosen(x, method=gwf.Auto(1e-3)) for x in (X, points(40_000)[0], points(5000, 5)[0]))
    assert few[0].startswith(f"{head}exact (auto: the cost model") and "cpp" in few[1]
    assert many[0] == f"{head}nufft (auto: by the cost model)"
    assert wide[0].startswith(f"{head}exact (auto: nufft needs D <= 3") and "cpp" in wide[1]
    for options in ({"method": "nufft"}, {"method": "sliced", "backend": "torch"}):
        with pytest.raises(ValueError, match=r"needs D <= 3|backend must be None"):
            chosen(X.repeat(1, 5), **options)


@pytest.mark.parametrize("name", CALLED_FOR)
def test_explain_answers_for_each(name):
    function = getattr(gwf.drift, name.removeprefix("drift.")) if name.startswith("drift.") else getattr(gwf, name)
    points = (X,) if name == "interaction_energy" else (X, Y)
    assert gwf.explain(function, *points).startswith((f"{name} on cpu", f"{name}, "))


def test_explain_is_what_runs(monkeypatch):
    """The same decision, by the same function."""
    decided = []
    choose = methods.choose
    monkeypatch.setattr(methods, "choose", lambda *given: decided.append(choose(*given)) or decided[-1])
    for x in (X, points(40_000)[0], points(300, 5)[0]):
        for method in ("auto", gwf.Auto(0.1)):
            text = gwf.explain(gwf.forward_step, x, 0.1, kernel=K, method=method)
            gwf.forward_step(x, 0.1, kernel=K, method=method)
            explained, ran = decided
            assert explained == ran and f": {ran} (auto: " in text
            decided.clear()


def test_explain_of_estimates_and_slices():
    assert "kernel_sum on cpu, torch.float32: sliced" in gwf.explain(gwf.with_error, gwf.kernel_sum, X, Y, kernel=K)
    text = gwf.explain(gwf.drift.energy, X, Y, sliced=4)
    assert "drift.energy on cpu, torch.float32: cpp" in text and "keops: serves sum, gradient," in text
    assert "keops: could serve" in gwf.explain(gwf.drift.energy, X, Y)


def test_explain_of_networks():
    net = gwf.nn.MLP([2, 8, 1], "silu")
    assert gwf.explain(net, X).startswith("MLP.forward on cpu, torch.float32: cpp (first")
    assert gwf.explain(net.value_and_grad, X).startswith("MLP.value_and_grad on cpu, torch.float32: cpp (first")
    loss = gwf.explain(gwf.nn.critic_objective, net, X, Y, divergence="js")
    assert loss.startswith("critic_objective on cpu, torch.float32: cpp (first")
    wide = gwf.explain(gwf.nn.MLP([2, 600, 1]), X)
    assert ": torch (the only one for torch.float32 on cpu and layers of up to 600)" in wide
    assert "  cpp: serves at most 512 coordinates, not 600" in wide
    with torch.autocast("cpu", torch.bfloat16):
        assert ": torch (the network's own modules, to which autocast" in gwf.explain(net, X)
    net[1] = torch.nn.Tanh()
    assert ": torch (the network's own modules, which were replaced" in gwf.explain(net, X)
    plain = torch.nn.Linear(2, 1)
    assert ": torch (the critic's own modules: a Linear is no" in gwf.explain(
        gwf.nn.critic_objective, plain, X, Y, divergence="js"
    )
    two = gwf.nn.MLP([2, 8, 2])
    assert ": torch (forward and backward" in gwf.explain(gwf.nn.critic_objective, two, X, Y, divergence="js")


class Plugin(gwf.Functional):
    """A functional of a user's own."""

    needs_critic = True

    def critic_objective(self, critic, x, z, reference):
        return critic(x).mean()

    def map_objective(self, critic, x, z, reference):
        return x.square().sum(-1).mean()

    value = map_objective


def test_explain_of_engines():
    known = gwf.KL(gwf.potentials.Gaussian(torch.zeros(2), torch.eye(2)))
    flow = gwf.JKOFlow(known, 2, 0.1)
    for text in (gwf.explain(flow.run, X, 3), gwf.explain(flow.step, flow.init(points(200)[0]))):
        assert text.startswith("engine: fused (first")
        assert "  torch: could serve" in text
    asked = gwf.explain(gwf.JKOFlow(known, 2, 0.1, engine="torch").run, X, 3)
    assert "torch (asked for)" in asked and "fused: could serve" in asked
    own = gwf.explain(gwf.JKOFlow(Plugin(), 2, 0.1).run, X, 3).split("\n")
    assert "torch (first" in own[0] and re.match(
        r"  fused: the functional Plugin has a critic, and no compiled form", own[1]
    )
    net = torch.nn.Linear(2, 2)
    assert "  fused: the map is a Linear" in gwf.explain(gwf.JKOFlow(known, 2, 0.1, map=net).run, X, 3)
    mixed = gwf.JKOFlow(gwf.Interaction(K) + known, 2, 0.1, scheme="forward_backward")
    assert "engine: fused (first" in gwf.explain(mixed.run, X.double(), 3)
    assert "  fused: the map is torch.float16 on cpu" in gwf.explain(flow.run, X.half(), 3)
    explicit = gwf.JKOFlow(gwf.Interaction(K), 2, 0.1, scheme="explicit")
    assert gwf.explain(explicit.run, X, 3) == "engine: none, scheme 'explicit' has no inner problem"


BACKENDS_OF = {
    "ksd2": lambda **o: gwf.ksd2(X.double(), -X.double(), kernel=K, **o),
    "sinkhorn": lambda **o: gwf.sinkhorn(X, Y, epsilon=1.0, **o).f,
    "sinkhorn_divergence": lambda **o: gwf.sinkhorn_divergence(X, Y, epsilon=1.0, **o),
    "barycentric_map": lambda **o: gwf.barycentric_map(X, Y, torch.zeros(len(Y)), epsilon=1.0, **o),
    "transport_cost": lambda **o: gwf.transport_cost(X, Y, epsilon=1.0, form="linear", **o),
    "sliced_wasserstein2": lambda **o: gwf.sliced_wasserstein2(X, Y, directions=torch.eye(2), **o),
    "sliced_energy_distance": lambda **o: gwf.sliced_energy_distance(X, Y, directions=torch.eye(2), **o),
    "drift.sinkhorn": lambda **o: gwf.drift.sinkhorn(X, Y, epsilon=1.0, **o),
    "drift.sliced_wasserstein": lambda **o: gwf.drift.sliced_wasserstein(X, Y, directions=torch.eye(2), **o),
    "drift.gmd_multi": lambda **o: gwf.drift.gmd_multi(X, Y, **o).velocity,
    "blob_velocity": lambda **o: gwf.blob_velocity(X, 0.5, m=3.0, **o),
}


@pytest.mark.parametrize("name", BACKENDS_OF)
def test_backends_are_asked_for(name, monkeypatch):
    """The one that is asked for does all the work, and the result is the same."""
    used = set()
    want = BACKENDS_OF[name]()
    torch.testing.assert_close(BACKENDS_OF[name](backend="cpp"), want, rtol=0, atol=0)
    for operation, row in OPERATIONS.items():
        if "cpp" in row.served_by:
            module = importlib.import_module(f"gwf_fast.kernels.{row.served_by['cpp'].module}")
            for function in row.functions:
                monkeypatch.setattr(module, function, lambda *_, of=operation, **__: used.add(of))
    monkeypatch.setattr(dispatch, "_FUNCTIONS", {})
    got = BACKENDS_OF[name](backend="torch")
    assert used == set()
    torch.testing.assert_close(got, want, rtol=2e-4, atol=1e-5)
    with pytest.raises(ValueError, match="backend must be None or one of cpp"):
        BACKENDS_OF[name](backend="numpy")
    with pytest.raises(ValueError, match="backend='cuda' can't serve"):
        BACKENDS_OF[name](backend="cuda")


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
    assert page.read_text() == documented(page.read_text()), "run: .venv/bin/python bench/gpu_table.py --operations"


def test_halves_on_a_cpu_are_said_to_be_computed_in_float32():
    x = torch.zeros(5, 2, dtype=torch.bfloat16)
    first, second = gwf.explain(gwf.kernel_sum, x, x, kernel=gwf.Gaussian(1.0)).split("\n")[:2]
    assert first == "torch.bfloat16 on a CPU is computed in float32"
    assert second.startswith("kernel_sum on cpu, torch.float32: cpp")
    assert "float32" not in gwf.explain(gwf.kernel_sum, x.double(), x.double(), kernel=gwf.Gaussian(1.0)).split("\n")[0]
