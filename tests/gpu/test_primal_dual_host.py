"""The persistent kernel of the JKO loop, its threads emulated on the CPU, against the CPU's loop."""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gwf_fast import IPM, KL, GeneralizedEntropy, Interaction, JensenShannon, Training, potentials
from gwf_fast import Gaussian as GaussianKernel
from gwf_fast.flows.engines.choice import ENGINES
from gwf_fast.flows.engines.fused import _refuses_on_device, compiled_problem
from gwf_fast.functionals.adversarial import DonskerVaradhan
from gwf_fast.kernels.cpp.primal_dual import PrimalDual as HostLoop
from gwf_fast.kernels.cpp.primal_dual import philox_indices, philox_normals, philox_uniforms
from gwf_fast.kernels.cuda import primal_dual as primal_dual_cuda
from gwf_fast.nn import MLP
from gwf_fast.ops.table import BACKENDS
from tests.gpu.loops import difference, divergence, gaussian, inner_problem, logistic, mixture, samples, solved, state

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
BYTES = 227 * 1024  # of shared memory: an H100's

pytestmark = pytest.mark.skipif(
    CXX is None or importlib.util.find_spec("pybind11") is None or not (ROOT / "csrc" / "gpu").is_dir(),
    reason="needs a C++ compiler, pybind11 and the source tree",
)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """gwf_fast._cuda's PrimalDual with an emulated kernel."""
    import pybind11

    target = tmp_path_factory.mktemp("host") / f"host_primal_dual{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{path}" for path in (ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include"))]
    options = ["-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
    source = ROOT / "tests" / "gpu" / "host_primal_dual.cpp"
    subprocess.run([CXX, *options, *includes, str(source), "-o", str(target)], check=True)
    spec = importlib.util.spec_from_file_location("host_primal_dual", target)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def emulated(module, monkeypatch):
    """Makes loops of so many blocks, threads and bytes of shared memory; ``order`` seeds which thread runs next."""
    monkeypatch.setattr(primal_dual_cuda, "_module", lambda: module)
    module.emulate(4, BYTES, 64, 0, -1)

    def choose(blocks=0, *, threads=64, shared=BYTES, order=0, absent=-1, layouts=None):
        module.emulate(4, shared, threads, order, absent)

        def loop(problem):
            made = primal_dual_cuda.PrimalDual(problem, blocks)
            if layouts is not None:
                layouts.append(made.layout)
            return made

        return loop

    return choose


def training(**changed):
    return Training(**{"batch_size": 64, "iterations": 6, "critic_steps": 2, "map_steps": 2} | changed)


def test_threads_draw_what_the_cpu_draws(module):
    seed, iteration, stream, bound = 2**61 + 12345, 77, 3, 1_000_003
    drawn = [module.draw(seed, iteration, stream, i, bound) for i in range(200)]
    indices, uniforms, normals, singles = (torch.tensor(part, dtype=torch.float64) for part in zip(*drawn, strict=True))
    assert torch.equal(indices.long(), philox_indices(seed, iteration, stream, 200, bound))
    assert torch.equal(uniforms, philox_uniforms(seed, iteration, stream, 200))
    for found, dtype, error in ((normals, torch.float64, 1e-14), (singles, torch.float32, 1e-6)):
        expected = philox_normals(seed, iteration, stream, 200, 1, dtype).flatten().double()
        torch.testing.assert_close(found, expected, rtol=error, atol=error)


@pytest.mark.parametrize("make", [mixture, divergence()], ids=["density", "samples"])
def test_the_paper_s_networks_for_200_iterations(emulated, make):
    options = {"dim": 2, "widths": (16,) * 4, "training": training(batch_size=100, iterations=200, critic_steps=3)}
    assert difference(emulated(threads=32), make, **options) < 1e-9


DIVERGENCES = [
    ("kl", None), ("reverse_kl", None), ("js", None), ("pearson", None), ("neyman", None), ("squared_hellinger", None),
    ("total_variation", None), ("alpha", 1.5), ("alpha", 0.5), ("generalized_entropy", 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameter"), DIVERGENCES)
def test_every_divergence(emulated, name, parameter):
    options = {"dim": 2, "widths": (8, 5), "training": training()}
    assert difference(emulated(threads=32), divergence(name, parameter), **options) < 1e-11


@pytest.mark.parametrize("make", [gaussian, mixture])
@pytest.mark.parametrize("dim", [1, 3, 4, 17])
def test_every_density(emulated, make, dim):
    assert difference(emulated(2), make, dim=dim, widths=(8, 5), training=training(iterations=3)) < 1e-11


@pytest.mark.parametrize("dim", [2, 4, 7])
def test_logistic_regression(emulated, dim):
    options = {"dim": dim, "widths": (8, 5), "training": training(iterations=3)}
    assert difference(emulated(2, shared=60 * 1024), logistic, **options) < 1e-11


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "silu", "softplus", "tanh", "sigmoid"])
def test_every_activation(emulated, activation):
    options = {"dim": 2, "widths": (8, 5), "activation": activation, "training": training(), "output": "tanh"}
    assert difference(emulated(threads=32), divergence(), **options) < 1e-11


OPTIONS: dict[str, Any] = {
    "rates": {"critic_lr": 5e-3, "lr_schedule": "cosine", "betas": (0.5, 0.9)},
    "clip": {"gradient_clip": 0.1},
    "decay": {"weight_decay": 0.3},
    "average": {"ema": 0.8},
    "steps": {"critic_steps": 1, "map_steps": 3},
    "whole": {"batch_size": 500},
    "samples": {"batch_size": 400},  # more than the target has
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(emulated, option):
    assert difference(emulated(3), divergence(), training=training(**OPTIONS[option]), chunks=(1, 2)) < 1e-11


def test_donsker_varadhan(emulated):
    options = {"training": training(), "output_bias": False}  # whose gradient is zero
    assert difference(emulated(2), lambda dim: DonskerVaradhan(samples(dim)), **options) < 1e-11


@pytest.mark.parametrize("activation", ["prelu", "relu", "leaky_relu"])
@pytest.mark.parametrize(("widths", "keywords"), [((16, 16), {}), ((9, 6, 5), {"shared": 16 * 1024}), ((), {})])
def test_gradient_penalty(emulated, activation, widths, keywords):
    options = {"dim": 3, "widths": widths, "activation": activation, "training": training(batch_size=40)}
    options["output_bias"] = False
    layouts = []
    assert difference(emulated(3, **keywords, layouts=layouts), lambda dim: IPM(samples(dim)), **options) < 1e-11
    assert layouts[0]["resident"] == (not keywords)


@pytest.mark.parametrize("slope", [0.0, -0.3])
def test_gradient_penalty_with_slopes_that_do_not_tell_the_sign(emulated, slope):
    options = {"widths": (9, 6), "slope": slope, "training": training(batch_size=40, iterations=3)}
    assert difference(emulated(2), lambda dim: IPM(samples(dim)), output_bias=False, **options) < 1e-11


def test_a_generator_from_latent_noise(emulated):
    assert difference(emulated(2), divergence("kl"), latent=4, training=training()) < 1e-11


@pytest.mark.parametrize(("dim", "widths"), [(1, ()), (1, (3,)), (17, (64, 33)), (64, (128,))])
def test_shapes(emulated, dim, widths):
    options = {"dim": dim, "widths": widths, "training": training(batch_size=37, iterations=2)}
    assert difference(emulated(3), gaussian, **options) < 1e-11


PLACES = {
    "one block, many threads": ({"blocks": 1, "threads": 512}, True),
    "a tile a side": ({"blocks": 1, "shared": 110 * 1024}, True),
    "many tiles": ({"blocks": 2, "shared": 50 * 1024}, True),
    "a layer at a time": ({"blocks": 3, "shared": 32 * 1024}, False),
    "blocks without samples": ({"blocks": 7}, True),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_a_block_keeps_its_rows(emulated, place):
    keywords, resident = PLACES[place]
    layouts = []
    options = {"widths": (33, 20), "training": training(batch_size=101, iterations=2)}
    assert difference(emulated(**keywords, layouts=layouts), mixture, **options) < 1e-11
    assert layouts[0]["resident"] == resident
    assert layouts[0]["blocks"] == keywords["blocks"]
    assert layouts[0]["shared_bytes"] <= keywords.get("shared", BYTES)


# widths, keywords of the loop, results a lane (0: a block has them together), whether each block updates all
SHARINGS = {
    "16 lanes a row": ((16, 9), {"blocks": 3}, 1, True),
    "a warp a row": ((32, 17), {"blocks": 3, "threads": 160}, 1, True),
    "two results a lane": ((64, 33), {"blocks": 2, "threads": 512}, 2, True),
    "many parameters": ((64, 33), {"blocks": 12}, 2, False),
    "a block a row": ((65, 9), {"blocks": 2}, 0, True),
}


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("make", [gaussian, lambda dim: IPM(samples(dim))], ids=["density", "penalty"])
def test_how_threads_share_rows(emulated, sharing, make):
    widths, keywords, per_lane, everywhere = SHARINGS[sharing]
    layouts = []
    options = {"widths": widths, "training": training(batch_size=45, iterations=2, gradient_clip=0.1)}
    assert difference(emulated(**keywords, layouts=layouts), make, output_bias=False, **options) < 1e-11
    assert (layouts[0]["per_lane"], layouts[0]["everywhere"]) == (per_lane, everywhere)
    assert layouts[0]["threads"] == keywords.get("threads", 64)


def test_blocks_without_particles(emulated):
    """Their sums of the map's gradient are zeros, not what the critic left there; the kernel takes more samples."""
    states = []
    for loop in (HostLoop, emulated(5)):
        problem = inner_problem(divergence()(3), pool=20, training=training(iterations=3))
        solved(lambda c, loop=loop: loop(dataclasses.replace(c, numbers={**c.numbers, "target_batch": 64})), problem)
        states.append(state(problem))
    for expected, found in zip(*states, strict=True):
        assert (found - expected).norm() < 1e-11 * expected.norm()


@pytest.mark.parametrize("widths", [(9, 8), (33, 20), (66, 5)])
@pytest.mark.parametrize("shared", [32 * 1024, BYTES])
def test_the_order_of_threads_does_not_matter(emulated, widths, shared):
    """Bit for bit: else threads would meet too seldom."""

    def parameters(order):
        options = training(iterations=2, critic_steps=1, gradient_clip=0.1, ema=0.9)
        problem = inner_problem(gaussian(3), widths=widths, training=options)
        solved(emulated(3, order=order, shared=shared), problem)
        return torch.cat([p.detach().flatten() for net in (problem.map, problem.critic) for p in net.parameters()])

    first = parameters(0)
    assert all(torch.equal(parameters(order), first) for order in range(1, 4))


@pytest.mark.parametrize("absent", [0, 2])
def test_blocks_that_wait_in_vain_give_up(emulated, absent):
    problem = inner_problem(divergence()(3), training=training())
    with pytest.raises(RuntimeError, match="blocks waited for each other in vain"):
        solved(emulated(3, absent=absent), problem)


def test_float32(emulated):
    options = {"dim": 2, "widths": (16,) * 4, "activation": "silu", "dtype": torch.float32}
    assert difference(emulated(2), mixture, **options) < 1e-5


def test_a_loss_that_is_not_finite_ends_the_run(emulated):
    problem = inner_problem(divergence()(3), training=training(iterations=5))
    problem.anchors[::2] = float("nan")
    assert solved(emulated(), problem)["iterations"] == 1


def test_networks_that_do_not_fit(emulated):
    problem = inner_problem(divergence()(3), widths=(128, 128), training=training())
    with pytest.raises(RuntimeError, match="more shared memory than the 40960 bytes"):
        solved(emulated(shared=40 * 1024), problem)


@pytest.mark.parametrize("make", [gaussian, mixture, divergence("kl")], ids=["gaussian", "mixture", "samples"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_widest_networks_fit_a_card(emulated, make, dtype):
    """Planned, not run: 64 coordinates and layers of 128, as test_primal_dual_gpu.py runs them."""
    options = {"widths": (128,) * 4, "activation": "silu", "training": training(batch_size=1024), "dtype": dtype}
    loop = emulated(132, threads=512)(compiled_problem(inner_problem(make(64), 64, pool=2000, **options)))
    assert loop.layout["shared_bytes"] <= BYTES


@pytest.mark.usefixtures("emulated")
class TestRefusals:
    def reason(self, functional, monkeypatch, sizes=(3, 16, 3), activation="prelu", **options):
        monkeypatch.setattr(type(BACKENDS["cuda"]), "missing", lambda self, device: None)
        critic = MLP([3, 16, 1], activation)
        return _refuses_on_device(functional, MLP(sizes), critic, Training(**options))

    def test_of_functionals(self, monkeypatch):
        z = samples(3)
        for functional, words in (
            (Interaction(GaussianKernel(1.0)), "one term, with a critic"),
            (JensenShannon(z) + Interaction(GaussianKernel(1.0)), "one term, with a critic"),
            (KL(lambda x: -x.square().sum(-1)), "density of KL must have a compiled form for it"),
            (GeneralizedEntropy(2), "must be a tensor of samples; GeneralizedEntropy draws its own"),
            (JensenShannon(lambda n: z[:n]), "must be a tensor of samples"),
        ):
            assert words in self.reason(functional, monkeypatch)
        assert self.reason(JensenShannon(z), monkeypatch) is None
        assert self.reason(KL(potentials.Gaussian(torch.zeros(3), torch.eye(3))), monkeypatch) is None

    def test_of_networks(self, monkeypatch):
        wide = self.reason(JensenShannon(samples(3)), monkeypatch, (3, 129, 3))
        assert "on CUDA networks are at most 128 wide" in wide
        assert "1 to 12 layers" in self.reason(JensenShannon(samples(3)), monkeypatch, (3,) * 14)
        smooth = self.reason(IPM(samples(3)), monkeypatch, activation="silu")
        assert "must have leaky units" in smooth
        assert self.reason(IPM(samples(3)), monkeypatch) is None
        assert "no dropout" in self.reason(JensenShannon(samples(3)), monkeypatch, dropout=0.1)

    def test_of_what_does_not_fit(self, module, monkeypatch):
        module.emulate(4, 40 * 1024, 64, 0, -1)
        large = self.reason(JensenShannon(samples(3)), monkeypatch, (3, 128, 128, 3))
        assert "on CUDA the networks need more shared memory than the 40960 bytes" in large

    def test_without_the_module(self):
        if BACKENDS["cuda"].absence() is None:
            pytest.skip("the module is there")
        reason = _refuses_on_device(JensenShannon(samples(3)), MLP([3, 3]), MLP([3, 1]), Training())
        assert "needs gwf_fast._cuda: install with GWF_FAST_CUDA=1" in reason

    def test_other_devices(self):
        map, critic = (MLP(sizes).to("meta") for sizes in ([3, 3], [3, 1]))
        reason = ENGINES["fused"].refuses(JensenShannon(samples(3)), map, critic, Training())
        assert "float32 or float64 on the CPU or a CUDA device" in reason
        assert isinstance(map, nn.Module)
