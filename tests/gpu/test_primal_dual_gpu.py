"""``pytest -m gpu``: the persistent kernel of the JKO loop on a CUDA device, against the CPU's loop."""

from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.flows.training import Training
from gwf_fast.functionals.adversarial import DonskerVaradhan
from gwf_fast.kernels.cuda import primal_dual as primal_dual_cuda
from gwf_fast.ops.table import BACKENDS
from tests.gpu.loops import difference, divergence, gaussian, inner_problem, logistic, mixture, samples, solved, state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(BACKENDS["cuda"].absence() is not None, reason=f"cuda backend {BACKENDS['cuda'].absence()}"),
]


def loop_of(blocks=0):
    return lambda problem: primal_dual_cuda.PrimalDual(problem, blocks)


def training(**changed):
    return Training(**{"batch_size": 100, "iterations": 20, "critic_steps": 3, "map_steps": 2} | changed)


PAPER = {"dim": 2, "widths": (16,) * 4, "device": "cuda"}


@pytest.mark.parametrize("blocks", [0, 1, 4, 8, 25])
def test_a_few_iterations(blocks):
    assert difference(loop_of(blocks), mixture, training=training(iterations=5), **PAPER) < 1e-11


@pytest.mark.parametrize("threads", [64, 128, 256, 512])
@pytest.mark.parametrize("widths", [(16, 16), (32, 20), (64, 33), (70, 9)])
def test_threads(threads, widths):
    options = {"widths": widths, "training": training(iterations=5, gradient_clip=0.1), "device": "cuda"}
    for blocks in (1, 8, 25):
        loop = lambda problem: primal_dual_cuda.PrimalDual(problem, blocks, threads)  # noqa: B023, E731
        assert difference(loop, mixture, **options) < 1e-11


@pytest.mark.parametrize("make", [mixture, divergence()], ids=["density", "samples"])
@pytest.mark.parametrize("blocks", [1, 8, 25])
def test_the_paper_s_networks_for_200_iterations(make, blocks):
    options = {"training": training(iterations=200), "chunks": (50, 50, 50)}
    assert difference(loop_of(blocks), make, **PAPER, **options) < 1e-9


def test_float32_to_rounding():
    options = {"training": training(iterations=50), "activation": "silu", "dtype": torch.float32}
    assert difference(loop_of(), mixture, **PAPER, **options) < 1e-4


SIZES = {
    "M": {"dim": 32, "widths": (64,) * 4, "training": training(batch_size=512, iterations=3), "pool": 2000},
    "L": {"dim": 64, "widths": (128,) * 4, "training": training(batch_size=1024, iterations=2), "pool": 2000},
    "deep": {"dim": 5, "widths": (40,) * 10, "training": training(iterations=3)},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [gaussian, mixture, divergence("kl")], ids=["gaussian", "mixture", "samples"])
def test_larger_networks(size, make):
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-3)):
        assert difference(loop_of(), make, device="cuda", dtype=dtype, activation="silu", **SIZES[size]) < bound


@pytest.mark.parametrize("activation", ["prelu", "relu", "leaky_relu", "elu", "silu", "softplus", "tanh", "sigmoid"])
def test_every_activation(activation):
    options = {"dim": 3, "widths": (16, 9), "activation": activation, "device": "cuda"}
    assert difference(loop_of(3), divergence(), training=training(), **options) < 1e-10


@pytest.mark.parametrize(
    "name", ["kl", "reverse_kl", "js", "pearson", "neyman", "squared_hellinger", "total_variation"]
)
def test_every_divergence(name):
    assert difference(loop_of(), divergence(name), training=training(), **PAPER) < 1e-10


OPTIONS: dict[str, Any] = {
    "rates": {"critic_lr": 5e-3, "lr_schedule": "cosine", "betas": (0.5, 0.9)},
    "clip": {"gradient_clip": 0.1},
    "decay": {"weight_decay": 0.3},
    "average": {"ema": 0.8},
    "whole": {"batch_size": 500},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("blocks", [1, 8, 20])
def test_every_option(option, blocks):
    options = {"training": training(**OPTIONS[option]), "device": "cuda"}
    assert difference(loop_of(blocks), divergence(), **options) < 1e-10


def test_donsker_varadhan():
    for blocks in (1, 8, 25):
        make = lambda dim: DonskerVaradhan(samples(dim))  # noqa: E731
        assert difference(loop_of(blocks), make, training=training(), **PAPER) < 1e-8


@pytest.mark.parametrize("activation", ["prelu", "relu"])
@pytest.mark.parametrize("blocks", [1, 8, 25])
def test_gradient_penalty(activation, blocks):
    options = PAPER | {"activation": activation, "training": training()}
    assert difference(loop_of(blocks), lambda dim: gwf.IPM(samples(dim)), **options) < 1e-9


@pytest.mark.parametrize("blocks", [1, 8, 25])
def test_logistic_regression(blocks):
    options = {"dim": 7, "training": training(), "device": "cuda"}
    assert difference(loop_of(blocks), logistic, **options) < 1e-10


def test_a_generator():
    assert difference(loop_of(), divergence("kl"), dim=3, latent=4, training=training(), device="cuda") < 1e-10


def test_the_same_in_every_run():
    results = []
    for _ in range(3):
        problem = inner_problem(mixture(2), training=training(), **PAPER | {"dtype": torch.float32})
        solved(loop_of(25), problem)
        results.append(state(problem))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_a_flow_takes_it():
    """Through JKOFlow, on its own choice of engine."""
    target = gwf.potentials.GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 1.0]]), 0.7)
    x0 = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    results = {}
    for device in ("cpu", "cuda"):
        potential = gwf.potentials.GaussianMixture(target.means.to(device), 0.7)
        flow = gwf.JKOFlow(gwf.KL(potential), 2, 0.1, training=training(iterations=40), engine="fused")
        results[device] = flow.run(x0.to(device), 2, progress=False).particles.cpu()
    assert (results["cuda"] - results["cpu"]).norm() < 0.05 * (results["cpu"] - x0).norm()
