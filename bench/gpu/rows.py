"""What is timed on a GPU, in order of importance: each row with its truth, its work, and its peers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

import gwf_fast as gwf
from bench import drifts
from bench.gpu import peers
from bench.gpu.cards import Work, reduction
from bench.problem import Problem, clouds, truth
from bench.registry import OURS, Contender, Result


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how large: ``divide`` makes the sizes of a dry run."""

    device: torch.device
    divide: int = 1

    def size(self, n: int) -> int:
        """A number of points."""
        return max(64, n // self.divide)

    def backend(self, name: str | None) -> str | None:
        """A backend for GPUs, or in its place what there is on the CPU."""
        return name if self.device.type == "cuda" or name is None else "cpp"


NOTHING = Work()


@dataclasses.dataclass(frozen=True)
class Made:
    """What a row needs once its inputs are there.

    Attributes:
        contenders: By name, what makes each; ours first.
        truth: In float64.
        checked: The part of a result that the truth has.
        work: Of one call.
    """

    contenders: dict[str, Callable[[], Contender]]
    truth: Callable[[], Result]
    checked: Callable[[Result], Result] = lambda result: result
    work: Work = NOTHING


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Unique.
        tier: 0 comes first; the peers of a tier come before the next tier.
        make: Inputs and contenders on a device.
        tolerance: Largest relative error of ours.
        peer_tolerance: Of a peer, which gets no time beyond.
        host: Whether launches and host time are counted: small problems, where they are what is paid.
    """

    name: str
    tier: int
    make: Callable[[Setting], Made]
    tolerance: float = 3e-6
    peer_tolerance: float = 1e-3
    host: bool = False


SIZES = {2: 2**17, 3: 2**17, 16: 2**16, 64: 2**15, 128: 2**15, 784: 2**13}
"""Points by dimension: a few milliseconds a call."""


def placed(problem: Problem, device: torch.device, is_far: bool = False) -> Problem:
    """A problem on a device; a far one is in two parts a thousand apart, where products would lose all digits."""
    tensors = {name: getattr(problem, name).to(device) for name in ("x", "y", "weights")}
    if is_far:
        for name in ("x", "y"):
            tensors[name][::2, 0] += 1000.0
    return dataclasses.replace(problem, **tensors)


def pairwise(
    operation: str, kernel: str, dim: int, backend: str, others: tuple[str, ...], is_far: bool, setting: Setting
) -> Made:
    """One of the four reductions."""
    n = setting.size(SIZES[dim])
    problem = placed(clouds(n, n, dim, kernel), setting.device, is_far)
    rows = torch.linspace(0, n - 1, min(n, 256), dtype=torch.float64).round().long().to(setting.device)
    few = dataclasses.replace(problem, x=problem.x[rows])
    function, k = getattr(gwf, f"kernel_{operation}"), getattr(gwf, kernel)(problem.bandwidth)
    weights = (problem.weights,) if operation in ("sum", "gradient") else ()

    def ours() -> Contender:
        def call() -> Result:
            with torch.no_grad():
                return (function(problem.x, problem.y, *weights, kernel=k, backend=setting.backend(backend)),)

        return call

    known = {
        "KeOps": functools.partial(peers.keops, operation, problem, rows),
        "torch dense": functools.partial(peers.dense, operation, problem, False),
        "torch.compile": functools.partial(peers.dense, operation, problem, True),
        "SDPA": functools.partial(peers.attention, problem),
    }
    return Made(
        {OURS: ours, **{name: known[name] for name in others}},
        truth=lambda: (truth(few, f"kernel_{operation}"),),
        checked=lambda result: (result[0][rows],),
        work=reduction(operation, kernel, n, n, dim),
    )


def reductions() -> list[Row]:
    """The four reductions, near and far, by dimension."""
    rows = []

    def add(
        operation: str, kernel: str, dim: int, tier: int, *others: str, backend: str = "triton", is_far: bool = False
    ) -> None:
        make = functools.partial(pairwise, operation, kernel, dim, backend, others, is_far)
        marks = ("-far" if is_far else "") + (f"-{backend}" if backend != "triton" else "")
        loose = {"triton:tf32": 3e-2}.get(backend, 1e-5)
        rows.append(Row(f"{operation}/{kernel}/D{dim}{marks}", tier, make, loose))

    for dim in (2, 3, 64):
        add("sum", "Gaussian", dim, 0, "KeOps", "torch dense", *(("torch.compile",) if dim != 3 else ()))
    for operation in ("gradient", "logsumexp", "average"):
        for dim in (3, 64):
            add(operation, "Gaussian", dim, 1, "KeOps", *(("SDPA",) if (operation, dim) == ("average", 64) else ()))
    for dim in (16, 128, 784):
        add("sum", "Gaussian", dim, 1, "KeOps", "torch dense")
    for dim in (3, 64):
        add("sum", "Laplace", dim, 1, "KeOps")
    for dim in (16, 64, 128, 784):
        add("sum", "Gaussian", dim, 2, backend="triton:tf32")
        add("sum", "Gaussian", dim, 2, is_far=True)
    for dim in (2, 3):
        add("sum", "Gaussian", dim, 2, backend="cuda")
    for operation in ("gradient", "average"):
        for dim in (16, 128, 784):
            add(operation, "Gaussian", dim, 2, "KeOps")
    for dim in (16, 128, 784):
        add("sum", "Laplace", dim, 3, "KeOps")
        add("logsumexp", "Gaussian", dim, 3, "KeOps")
    return rows


def sinkhorn(n: int, dim: int, setting: Setting) -> Made:
    """The Sinkhorn divergence and its gradient, by geomloss' interface: the same iterations."""
    n = setting.size(n)
    problem = placed(clouds(n, n, dim, shift=0.5), setting.device)
    make = functools.partial(peers.sinkhorn, x=problem.x, y=problem.y, blur=0.1 * math.sqrt(dim), scaling=0.8)
    few = 2048  # a truth in float64 of all points would take longer than all that is timed
    small = functools.partial(make, x=problem.x[:few], y=problem.y[:few])
    exact = functools.partial(small, x=problem.x[:few].double(), y=problem.y[:few].double())

    def contender(package: str) -> Contender:
        calls = {False: make(package), True: small(package)}
        return peers.WithCheck(calls[False], calls[True])

    names = (OURS, "geomloss online", "flash-sinkhorn")
    return Made({name: functools.partial(contender, name) for name in names}, truth=lambda: exact(OURS)())


def drifting(batch: int, n: int, m: int, dim: int, setting: Setting) -> Made:
    """Drifting's own sizes: many small problems."""
    batch = max(2, batch // setting.divide)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(batch, count, dim, generator=generator).to(setting.device) for count in (n, m))
    temperature = 0.5 * math.sqrt(2 * dim)

    def contender(function: Callable[..., Tensor]) -> Contender:
        def call() -> Result:
            with torch.no_grad():
                return (function(x, y, temperature=temperature),)

        return call

    makers = {
        OURS: lambda: contender(gwf.drift.gmd),
        "torch dense": lambda: contender(drifts.dense_drift),
        "torch.compile": lambda: contender(torch.compile(drifts.dense_drift, dynamic=False)),
    }
    pairs = float(batch) * n * (n + m)
    work = Work(pairs, pairs * (2 * dim + 2), 3 * pairs * dim, 2 * pairs, 4.0 * batch * dim * (2 * n + m))
    return Made(makers, truth=lambda: (drifts.true_drift(x, y, temperature),), work=work)


def discrepancy(dim: int, n: int, setting: Setting) -> Made:
    """The squared MMD and its gradient in x."""
    n = setting.size(n)
    problem = placed(clouds(n, n, dim, shift=0.5), setting.device)

    def contender(x: Tensor, y: Tensor, by_hand: bool = False) -> Contender:
        leaf, kernel = x.clone().requires_grad_(), gwf.Gaussian(problem.bandwidth)
        value = peers.dense_mmd2(problem.g) if by_hand else functools.partial(gwf.mmd2, kernel=kernel)

        def call() -> Result:
            out = value(leaf, y)
            return out.detach(), *torch.autograd.grad(out, leaf)

        return call

    makers = {
        OURS: lambda: contender(problem.x, problem.y),
        "torch dense": lambda: contender(problem.x, problem.y, True),
    }
    pairs = 4.0 * n * n
    return Made(makers, lambda: contender(problem.x.double(), problem.y.double())(), work=Work(pairs, mufu=pairs))


def flow(kind: str, engine: Literal["fused", "torch"] | None, setting: Setting) -> Made:
    """One JKO step of 500 iterations in two dimensions, the paper's networks; checked for being finite."""
    iterations = 500 if setting.divide == 1 else 20
    target = gwf.potentials.Gaussian(torch.zeros(2, device=setting.device), torch.eye(2, device=setting.device))
    functional = gwf.KL(target) if kind == "KL" else gwf.GeneralizedEntropy(2.0)
    training = gwf.Training(iterations=iterations, batch_size=512)

    def ours() -> Contender:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            start = 4 * torch.randn(4096, 2)
        run = gwf.JKOFlow(functional, 2, 0.1, training=training, engine=engine)
        state = run.init(start.to(setting.device))
        return lambda: (run.step(state).particles.isfinite().double().mean(),)

    return Made({OURS: ours}, truth=lambda: (torch.ones((), dtype=torch.float64, device=setting.device),))


def calls(name: str, setting: Setting) -> Made:
    """A thousand points in three dimensions: what a call costs before any arithmetic. The graph replays it."""
    problem = placed(clouds(1000, 1000, 3), setting.device)
    k = gwf.Gaussian(1.0)
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "kernel_sum": lambda x, y: gwf.kernel_sum(x, y, kernel=k),
        "kernel_gradient": lambda x, y: gwf.kernel_gradient(x, y, kernel=k),
        "kernel_logsumexp": lambda x, y: gwf.kernel_logsumexp(x, y, kernel=k),
        "kernel_average": lambda x, y: gwf.kernel_average(x, y, kernel=k),
        "mmd2": lambda x, y: gwf.mmd2(x, y, kernel=k),
        "energy_distance": gwf.energy_distance,
        "parzen_score": lambda x, y: gwf.parzen_score(x, y, 1.0),
        "ksd2": lambda x, y: gwf.ksd2(x, -x, kernel=k),
        "svgd_direction": lambda x, y: gwf.svgd_direction(x, -x, kernel=k),
        "forward_step": lambda x, y: gwf.forward_step(x, 0.1, kernel=k),
        "sinkhorn": lambda x, y: gwf.sinkhorn(x, y, epsilon=0.5).f,
        "drift.gmd": lambda x, y: gwf.drift.gmd(x, y, temperature=0.5),
        "drift.parzen_kl": lambda x, y: gwf.drift.parzen_kl(x, y, 1.0),
        "drift.mmd": lambda x, y: gwf.drift.mmd(x, y, kernel=k),
        "sliced_wasserstein2": lambda x, y: gwf.sliced_wasserstein2(x, y, directions=_directions(x)),
    }
    function = functions[name]

    def ours() -> Contender:
        def call() -> Result:
            with torch.no_grad():
                return (function(problem.x, problem.y),)

        return call

    def graph() -> Contender:
        if setting.device.type != "cuda":
            raise ImportError("a CUDA graph needs a GPU")
        return peers.captured(ours())

    exact = lambda: (function(problem.x.double(), problem.y.double()).double(),)  # noqa: E731
    return Made({OURS: ours, "graph": graph}, truth=exact)


CALLS = (
    "kernel_sum", "kernel_gradient", "kernel_logsumexp", "kernel_average", "mmd2", "energy_distance", "parzen_score",
    "ksd2", "svgd_direction", "forward_step", "sinkhorn", "drift.gmd", "drift.parzen_kl", "drift.mmd",
    "sliced_wasserstein2",
)  # fmt: skip


def _directions(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    theta = torch.nn.functional.normalize(torch.randn(64, x.shape[1], generator=generator, dtype=torch.float64), dim=1)
    return theta.to(x)


def all_rows() -> list[Row]:
    """Every row, the most important first."""
    rows = reductions()
    rows.append(Row("sinkhorn/value+gradient/D64", 0, functools.partial(sinkhorn, 10_000, 64), 1e-3, 1e-2))
    rows.append(Row("jko/KL/auto", 0, functools.partial(flow, "KL", None)))
    rows.append(Row("jko/KL/torch", 2, functools.partial(flow, "KL", "torch")))
    rows.append(Row("jko/entropy/auto", 2, functools.partial(flow, "entropy", None)))
    rows.append(Row("drift.gmd/2048x64x224x16", 1, functools.partial(drifting, 2048, 64, 224, 16), 1e-4))
    rows.append(Row("drift.gmd/4096x16x48x64", 2, functools.partial(drifting, 4096, 16, 48, 64), 1e-4))
    rows.append(Row("drift.gmd/1x4096x4096x64", 2, functools.partial(drifting, 1, 4096, 4096, 64), 1e-4))
    rows.append(Row("sinkhorn/value+gradient/D3", 1, functools.partial(sinkhorn, 20_000, 3), 1e-3, 1e-2))
    rows += [Row(f"mmd2/value+gradient/D{d}", 2, functools.partial(discrepancy, d, 2**13), 1e-4) for d in (2, 64)]
    rows += [Row(f"call/{name}", 1 if k < 4 else 3, functools.partial(calls, name), 1e-4, host=True)
             for k, name in enumerate(CALLS)]  # fmt: skip
    return sorted(rows, key=lambda row: row.tier)
