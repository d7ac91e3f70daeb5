"""``gwf-fast run drift``: its data, what it leaves, resuming, and one line for everything a user can get wrong."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gwf_fast import cli
from gwf_fast.experiments import drift_data
from gwf_fast.experiments.toys import TOYS, toy
from gwf_fast.flows.drifting_loop import DriftingLoop

QUICK = ["--steps", "4", "--batch-size", "16"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drift_data, "_JUDGED", 100)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # the command sets its own


def call(*arguments):
    return CliRunner().invoke(cli.app, ["run", "drift", *map(str, arguments)])


def idx(path, array):
    """An array of bytes as a compressed IDX file."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_standardised(name):
    torch.manual_seed(1)
    x = toy(name)(20_000)
    assert x.shape == (20_000, 2) and x.dtype == torch.float32
    assert x.mean(0).abs().max() < 0.03 and abs(x.square().mean().item() - 1) < 0.02
    assert x.abs().max() < 3.2


def test_toys_have_their_shapes():
    torch.manual_seed(0)
    x = toy("8gaussians")(8000)
    mode = (torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)).round().long() % 8
    assert torch.bincount(mode, minlength=8).min() > 850
    radius = toy("circles")(8000).norm(dim=1)
    assert (radius / radius.median()).sort().values.diff().max() > 0.3  # nothing between the circles
    board = toy("checkerboard")(8000)
    low, high = board.min(0).values, board.max(0).values
    cell = ((board - low) / (high - low) * 4).clamp(max=3.999).long()
    assert ((cell.sum(1) % 2) == 0).float().mean() > 0.99


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("gmd", ["--bandwidth", "0.3"]),
        ("parzen_kl", []),
        ("sinkhorn", ["--bandwidth", "0.5"]),
        ("mmd", []),
        ("sliced_wasserstein", ["--projections", "3"]),
        ("energy", ["--exponent", "1.5"]),
        ("critic", ["--transform", "js"]),
    ],
)
def test_each_kind_leaves_its_artefacts(kind, option):
    result = call("--kind", kind, "--data", "moons", *option, *QUICK, "--out", "out")
    assert result.exit_code == 0, result.output
    samples = np.load("out/samples.npy")
    assert samples.shape == (100, 2) and np.isfinite(samples).all()
    assert {name.split(".")[0] for name in load_file("out/generator.safetensors")} == {"generator"}
    with open("out/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["drift"]) > 0 and float(row["value"]) > 0 for row in rows)
    record = json.loads(Path("out/run.json").read_text())
    assert record["status"] == "finished" and record["drift"] == kind
    assert 0 <= record["metrics"]["coverage"] <= 1 and record["metrics"]["of_true_samples"]["coverage"] > 0.9
    assert Path("out/figure.png").read_bytes().startswith(b"\x89PNG")
    assert "of true samples: mmd 0" in result.output and "4/4" in result.stderr


def test_digits():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    result = call("--kind", "energy", "--data", "digits", *QUICK, "--out", "out")
    assert result.exit_code == 0, result.output
    assert np.load("out/samples.npy").shape == (100, 64)


def test_mnist(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (250, 28, 28), dtype=np.uint8)
    (tmp_path / "folder").mkdir()
    idx(tmp_path / "folder" / "t10k-images-idx3-ubyte.gz", images)
    idx(tmp_path / "folder" / "t10k-labels-idx1-ubyte.gz", images[:, 0, 0] % 10)
    result = call("--kind", "energy", "--data", "mnist", "--input", "folder", *QUICK, "--out", "out")
    assert result.exit_code == 0, result.output
    assert np.load("out/samples.npy").shape == (100, 784)


def _interrupt_at(monkeypatch, k):
    run, calls = DriftingLoop.run, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == k:
            raise KeyboardInterrupt
        run(self, *arguments)

    monkeypatch.setattr(DriftingLoop, "run", interrupted)
    return calls


def test_interrupted_and_resumed_equals_uninterrupted(monkeypatch):
    arguments = ["--kind", "mmd", *QUICK]
    assert call(*arguments, "--out", "whole").exit_code == 0
    calls = _interrupt_at(monkeypatch, 3)
    result = call(*arguments, "--out", "broken")
    assert result.exit_code == 130 and "gwf-fast run drift --out broken --resume" in result.stderr
    result = call("--out", "broken", "--resume")
    assert result.exit_code == 0, result.output
    assert len(calls) == 5  # the one that was interrupted is done again, no other
    assert np.array_equal(np.load("whole/samples.npy"), np.load("broken/samples.npy"))
    assert call("--out", "broken", "--resume", "--steps", 6).exit_code == 0
    assert json.loads(Path("broken/run.json").read_text())["settings"]["steps"] == 6
    assert_one_line(call("--out", "broken", "--resume", "--kind", "gmd"), "kind can't change", "only --steps can")


def test_a_comparison_is_interrupted_and_resumed(monkeypatch):
    arguments = ["--compare", "--data", "circles", "--steps", 1, "--batch-size", 8]
    calls = _interrupt_at(monkeypatch, 20)
    assert call(*arguments, "--out", "out").exit_code == 130
    result = call("--out", "out", "--resume")
    assert result.exit_code == 0, result.output
    assert len(calls) == 29
    assert "[28/28] critic-log_sigmoid: D = 2, 1 updates on 8 samples" in result.output
    record = json.loads(Path("out/run.json").read_text())
    assert len(record["metrics"]) == 29 and record["metrics"]["gmd-0.05"]["mmd"] > 0
    assert np.load("out/sinkhorn-0.5/samples.npy").shape == (100, 2)


def test_a_comparison_goes_on_where_one_drift_diverges(monkeypatch):
    run = DriftingLoop.run

    def diverging(self, *arguments):
        if self._model.drift == "energy":
            from gwf_fast import NonFiniteError

            raise NonFiniteError("update 1: too far")
        run(self, *arguments)

    monkeypatch.setattr(DriftingLoop, "run", diverging)
    result = call("--compare", "--steps", 1, "--batch-size", 8, "--out", "out")
    assert result.exit_code == 0, result.output
    assert result.output.count("diverged: update 1: too far") == 4
    metrics = json.loads(Path("out/run.json").read_text())["metrics"]
    assert metrics["energy-1.0"] is None and metrics["mmd-0.5"]["mmd"] > 0
    result = call("--kind", "energy", *QUICK, "--out", "alone")
    assert result.exit_code == 1 and result.stderr.strip().endswith("error: update 1: too far")


def assert_one_line(result, *parts):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--kind", "gdm"], ["kind must be one of gmd, ", "got 'gdm'; did you mean 'gmd'?"]),
        (["--data", "moon"], ["data must be one of 8gaussians, ", "did you mean 'moons'?"]),
        (["--data", "mnist"], ["input: --data mnist needs --input"]),
        (["--data", "mnist", "--input", "absent"], ["input: no such file: absent"]),
        (["--data", "mnist", "--input", "empty"], ["input: empty holds no file called"]),
        (["--data", "moons", "--input", "empty"], ["input: --data moons takes no --input"]),
        (["--kind", "energy", "--bandwidth", "1"], ["bandwidth: the drift 'energy' has no such option", "--exponent"]),
        (["--transform", "kl"], ["transform: the drift 'gmd' has no such option; it has --bandwidth"]),
        (["--compare", "--kind", "gmd"], ["kind: does not go with --compare"]),
        (["--kind", "critic", "--transform", "gan"], ["transform must be one of wgan, "]),
        (["--bandwidth", "-1"], ["temperature must be a positive number, got -1.0"]),
        (["--kind", "mmd", "--bandwidth", "nan"], ["bandwidth"]),
        (["--kind", "energy", "--exponent", "2"], ["exponent"]),
        (["--steps", "0"], ["steps must be a positive integer, got 0"]),
        (["--lr", "0"], ["lr must be a positive number, got 0.0"]),
        (["--particles", "5"], ["particles: the experiment 'drift' has no such option"]),
    ],
)
def test_bad_arguments(tmp_path, arguments, parts):
    (tmp_path / "empty").mkdir()
    assert_one_line(call(*arguments, "--out", "out"), *parts)
    assert not (tmp_path / "out").exists()  # nothing was begun
