"""The experiment mnist: IDX files, its networks, a short run on made-up images, and on real ones where they are."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from gwf_fast import cli
from gwf_fast.experiments import mnist
from gwf_fast.experiments.idx import read_digits, read_idx
from gwf_fast.experiments.image_networks import ResNetCritic, UNetMap
from gwf_fast.experiments.mnist import _gaussian
from gwf_fast.experiments.two_sample import two_sample_checks

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
QUICK = ["--particles", "40", "--steps", "2", "--iterations", "2", "--batch-size", "8", "--channels", "4"]


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """Sixty images 12 x 12 of three classes: a bright row in one of three places."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 40, (60, 12, 12))
    for image, label in zip(images, labels):
        image[4 * label + 1] = 230
    path = tmp_path / "data"
    path.mkdir()
    (path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    (path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return path


def test_idx(folder):
    images, labels = read_digits(folder)
    assert images.shape == (60, 12, 12)
    assert images.dtype == torch.float32
    assert images[1, 5].eq(230 / 255).all()
    assert labels.tolist() == [k % 3 for k in range(60)]
    assert np.array_equal(read_idx(folder / "t10k-labels-idx1-ubyte"), np.arange(60) % 3)
    again, _ = read_digits(folder / "t10k-images-idx3-ubyte.gz")
    assert torch.equal(again, images)
    (folder / "train-images-idx3-ubyte").write_bytes(idx(np.full((5, 12, 12), 7)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.full(5, 9)))
    images, labels = read_digits(folder)
    assert len(images) == 65
    assert labels[-1] == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "t10k-images-idx3-ubyte.gz").unlink(), "holds no file called"),
        (lambda p: (p / "t10k-labels-idx1-ubyte.gz").unlink(), "no such file: .*t10k-labels-idx1-ubyte.gz"),
        (lambda p: (p / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip"), "can't read"),
        (lambda p: (p / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"text")), "is not an IDX file"),
        (lambda p: (p / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4)))), r"expected \[N, H"),
        (
            lambda p: (p / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4))[:-1])),
            r"shape \[4\], 4 bytes, but has 3",
        ),
    ],
)
def test_bad_files(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match="input: .*" + message):
        read_digits(folder)


def test_networks():
    torch.manual_seed(0)
    x = torch.randn(5, 144)
    transport, critic = UNetMap(12, 4), ResNetCritic(12, 4, gain=2.0)
    assert torch.equal(transport(x), x)
    assert critic(x).shape == (5, 1)
    with torch.no_grad():
        for _ in range(40):  # each is one step of the power iterations
            critic(x[:1])
    layers = [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    matrices = [layer.weight.detach().flatten(1) for layer in layers]
    assert len(matrices) == 8
    for matrix in matrices:
        assert abs(torch.linalg.matrix_norm(matrix, 2) - 1) < 0.05
    critic.gain = 4.0
    first = critic.eval()(x)
    critic.gain = 2.0
    torch.testing.assert_close(first, 2 * critic(x))


def test_source_has_mean_and_covariance_of_the_data():
    rng = np.random.default_rng(1)
    x = rng.exponential(size=(500, 4)) @ rng.standard_normal((4, 4)) + np.arange(4)
    x = np.concatenate((x, np.full((500, 1), -1.0)), 1)  # a pixel without ink
    torch.manual_seed(0)
    samples = _gaussian(torch.tensor(x))(200_000).numpy()
    assert np.abs(samples[:, 4] + 1).max() < 1e-6
    deviation = x.std(0).max()
    np.testing.assert_allclose(samples.mean(0), x.mean(0), atol=0.01 * deviation)
    np.testing.assert_allclose(np.cov(samples.T), np.cov(x.T), atol=0.02 * deviation**2)


def test_two_sample_checks_know_real_images():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    images = torch.eye(3)[labels].repeat_interleave(3, 1) + 0.3 * torch.randn(600, 9, generator=generator)
    noise = images.mean(0) + images.std(0) * torch.randn(300, 9, generator=generator)
    checks = two_sample_checks(images, labels, {"noise": noise})
    assert checks["classifier_accuracy"] > 0.95
    for name in ("energy_distance", "mmd2"):
        assert abs(checks[f"{name}_real"]) < 0.1 * checks[f"{name}_noise"]
    assert checks["classifier_confidence_real"] > checks["classifier_confidence_noise"] + 0.05
    assert checks["classifier_variation_real"] < 0.15


def run(*arguments):
    return CliRunner().invoke(cli.app, ["run", "mnist", *map(str, arguments)])


def check(out, side):
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished"
    for name in ("jko_flow", "gan", "P_0", "real"):
        assert np.isfinite(record["metrics"][f"energy_distance_{name}"])
    for name in ("jko-flow", "gan"):
        samples = np.load(out / name / "samples.npy")
        assert samples.shape == (40, side * side)
        assert 0 <= samples.min() < samples.max() <= 1
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_run_and_resume(folder, tmp_path):
    pytest.importorskip("sklearn", reason="the classifier is scikit-learn's")
    result = run("--input", folder, *QUICK, "--side", 12, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    check(tmp_path / "out", 12)
    result = run("--out", tmp_path / "out", "--resume", "--steps", 3)
    assert result.exit_code == 0, result.output
    longer = run("--input", folder, *QUICK, "--side", 12, "--steps", 3, "--out", tmp_path / "once")
    assert longer.exit_code == 0, longer.output
    for name in ("jko-flow", "gan"):
        pieces, once = (np.load(tmp_path / folder / name / "samples.npy") for folder in ("out", "once"))
        assert np.array_equal(pieces, once)


def test_the_gan_is_the_flow_with_nothing_to_hold_it_and_metrics_are_of_what_was_pushed(folder, monkeypatch):
    defaults: Any = mnist.EXPERIMENT.defaults
    problem = mnist.build(replace(defaults, input=str(folder), side=12, steps=1))
    computation: Any = problem.computation
    members = computation.members
    steps = {name: (m.flow.step_size, m.flow.parametrization) for name, m in members.items()}
    assert steps == {"jko-flow": (5.0, "composition"), "gan": (math.inf, "generator")}
    judged = {}
    monkeypatch.setattr(mnist, "two_sample_checks", lambda real, labels, clouds: judged.update(clouds) or {})
    results = {
        name: SimpleNamespace(push=lambda z, value=value: torch.full_like(z, value), history=[])
        for name, value in (("jko-flow", 0.5), ("gan", -0.5))
    }
    problem.metrics(results)
    assert (judged["jko_flow"] == 0.75).all() and (judged["gan"] == 0.25).all()
    assert judged["P_0"].std() > 0


@pytest.mark.skipif(not REAL.is_dir(), reason="needs MNIST's files in ../shared/data/mnist")
def test_on_mnist(tmp_path):
    pytest.importorskip("sklearn", reason="the classifier is scikit-learn's")
    images, labels = read_digits(REAL)
    assert images.shape == (10_000, 28, 28)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    result = run("--input", REAL, *QUICK, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    check(tmp_path / "out", 14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --input, a folder with MNIST's IDX files"),
        (["--side", "7"], "side must be an even number of pixels, got 7"),
        (["--side", "40"], r"side: the images have [12, 12] pixels, got 40"),
        (["--input", "missing-folder"], "input: no such file: missing-folder"),
    ],
)
def test_bad_options(folder, arguments, message):
    given = [] if not arguments else ["--input", folder, *arguments]
    result = run(*given, "--out", folder.parent / "out")
    assert result.exit_code != 0
    assert message in result.output + (result.stderr or "")
