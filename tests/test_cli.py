"""The command line: what a run leaves behind, resuming, Ctrl-C, and one line for everything a user can get wrong."""

import csv
import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gwf_fast import Gaussian, JKOFlow, SquaredMMD, Training, cli
from gwf_fast.checkpoint.run_folder import RunFolder
from gwf_fast.experiments import NAMES, base, find, inputs, runner
from gwf_fast.experiments.computation import Flow, Study
from gwf_fast.flows.engines.fused import FusedEngine

QUICK = ["--particles", "60", "--steps", "2", "--iterations", "3", "--batch-size", "16"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def points_file(path, dim=2, n=40):
    points = np.random.default_rng(0).normal(3, 2, (n, dim)).astype(np.float32)
    np.save(path, points)
    return points


def check_outputs(folder, n, dim, steps):
    samples = np.load(folder / "samples.npy")
    assert samples.shape == (n, dim) and np.isfinite(samples).all()
    maps = load_file(folder / "maps.safetensors")
    assert {name.split(".")[0] for name in maps} == {f"{k:05d}" for k in range(1, steps + 1)}
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, steps + 1))
    assert all(np.isfinite(float(row[k])) for row in rows for k in ("loss", "value", "w2", "seconds"))
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["settings"]["seed"] is not None
    assert record["versions"]["torch"] and record["metrics"]
    return samples


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gmm(tmp_path, dim):
    result = call("run", "gmm", *QUICK, "--dim", dim, "--out", "out", "--seed", 3)
    assert result.exit_code == 0, result.output
    check_outputs(tmp_path / "out", 60, dim, 2)
    assert "mean log density" in result.output and "2/2" in result.stderr  # the progress bar


def test_the_engines_are_equal(tmp_path):
    for engine in ("torch", "fused"):
        result = call("run", "gmm", *QUICK, "--dim", 2, "--engine", engine, "--out", engine)
        assert result.exit_code == 0, result.output
    torch_samples, fused_samples = (np.load(tmp_path / name / "samples.npy") for name in ("torch", "fused"))
    assert not np.array_equal(torch_samples, fused_samples)  # two engines ran
    np.testing.assert_allclose(torch_samples, fused_samples, atol=1e-3)
    metrics = json.loads((tmp_path / "fused" / "run.json").read_text())["metrics"]
    assert len(metrics["ksd_along_the_flow"]) == 3
    assert 0 < metrics["ksd_of_exact_samples"] < metrics["ksd"]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_data_in_the_units_of_the_file(tmp_path, dim):
    points = points_file(tmp_path / "p.npy", dim)
    result = call("run", "data", "--input", "p.npy", *QUICK, "--functional", "js")
    assert result.exit_code == 0, result.output
    samples = check_outputs(tmp_path / "runs" / "data", 60, dim, 2)
    assert abs(samples.mean() - points.mean()) < 2


@pytest.mark.slow
def test_digits_come_closer_to_real_ones(tmp_path):
    """With the settings of `make demo`, P_K beats a Gaussian of the right mean and covariance."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    result = call("run", "digits", "--out", "out")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]
    assert metrics["mmd2_samples"] < metrics["mmd2_P_0"]
    assert metrics["classifier_confidence_samples"] > metrics["classifier_confidence_P_0"] + 0.05
    assert metrics["distance_to_nearest_real"] < metrics["the_same_for_P_0"]


@pytest.mark.parametrize("functional", ["js", "mmd", "js+mmd"])
def test_digits(tmp_path, functional):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    result = call("run", "digits", *QUICK, "--dim", 6, "--functional", functional, "--out", "out")
    assert result.exit_code == 0, result.output
    samples = check_outputs(tmp_path / "out", 60, 64, 2)
    assert -2 < samples.min() < samples.max() < 3  # ink goes from 0 to 1


def test_blr(tmp_path):
    pytest.importorskip("sklearn", reason="the default data come with scikit-learn")
    result = call(
        "run", "blr", "--particles", 256, "--steps", 3, "--iterations", 40, "--batch-size", 64, "--out", "out"
    )
    assert result.exit_code == 0, result.output
    check_outputs(tmp_path / "out", 256, 32, 3)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]["test_accuracy"] > 0.85
    assert "test accuracy: 0." in result.output and "test log likelihood: -" in result.output


def test_blr_maps_labels_0_and_1(tmp_path):
    table = np.random.default_rng(0).normal(size=(50, 3))
    table[:, 2] = table[:, 0] > 0
    np.savetxt(tmp_path / "t.csv", table, delimiter=",", header="a,b,label", comments="")
    features, labels = inputs.read_labelled(tmp_path / "t.csv")
    assert features.shape == (50, 2) and torch.equal(labels, features[:, 0].sign())
    result = call("run", "blr", "--input", "t.csv", *QUICK, "--out", "out")
    assert result.exit_code == 0, result.output


def test_mat_files(tmp_path):
    io = pytest.importorskip("scipy.io", reason=".mat files need SciPy")
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.tile([[0], [1]], (15, 1))
    io.savemat(tmp_path / "t.mat", {"data": x, "target": y})
    features, labels = inputs.read_labelled(tmp_path / "t.mat")
    assert features.shape == (30, 2) and labels.tolist() == [-1.0, 1.0] * 15
    assert inputs.read_points(tmp_path / "t.mat").shape == (30, 2)
    io.savemat(tmp_path / "u.mat", {"first": x, "second": x})
    assert_one_line(call("run", "data", "--input", "u.mat"), "u.mat has the variables first, second")


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    arguments = ["run", "gmm", *QUICK, "--steps", 3]
    assert call(*arguments, "--out", "whole").exit_code == 0
    solve, calls = FusedEngine.solve, []

    def interrupted(self, problem):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        solve(self, problem)

    monkeypatch.setattr(FusedEngine, "solve", interrupted)
    result = call(*arguments, "--out", "broken")
    assert result.exit_code == 130
    assert "gwf-fast run gmm --out broken --resume" in result.stderr
    assert json.loads((tmp_path / "broken" / "run.json").read_text())["status"] == "interrupted"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    result = call("run", "gmm", "--out", "broken", "--resume")
    assert result.exit_code == 0, result.output
    whole, broken = (check_outputs(tmp_path / name, 60, 2, 3) for name in ("whole", "broken"))
    assert np.array_equal(whole, broken)
    result = call("run", "gmm", "--out", "broken", "--resume", "--steps", 4)  # a finished run can go further
    assert result.exit_code == 0, result.output
    check_outputs(tmp_path / "broken", 60, 2, 4)


def assert_one_line(result, *parts):
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("content", "name", "part"),
    [
        (None, "absent.npy", "no such file"),
        (b"1,2\n3,4\n", "p.txt", "expected .npy, .npz, .csv, .tsv or .mat"),
        (b"1,2\n3\n", "p.csv", "line 2 has 1 values, the first one has 2"),
        (b"1,2\n3,four\n", "p.csv", "line 2: not a number"),
        (b"1,2\nnan,4\n5,6\n", "p.csv", "contains NaN or infinity, first in row 2"),
        (b"1,2\n", "p.csv", "expected at least two points"),
        (b"", "p.csv", "expected at least two points"),
        (b"\xff\xfe\x00", "p.csv", "can't read"),
        (b"1,2\n1,2\n", "p.csv", "are the same"),
        (b"rubbish", "p.npy", "can't read"),
        (b"rubbish", "p.mat", "p.mat"),
    ],
)
def test_bad_input_files(tmp_path, content, name, part):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_one_line(call("run", "data", "--input", name), "input: ", part)
    assert not (tmp_path / "runs").exists()  # nothing was begun


def test_a_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    assert_one_line(call("run", "data", "--input", "p.npy"), "input: ", "can't read")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "digit"], ["unknown experiment 'digit'", ", ".join(NAMES), "did you mean 'digits'?"]),
        (["run", "zzz"], ["unknown experiment 'zzz'", ", ".join(NAMES)]),
        (["run", "data"], ["input: ", "--input"]),
        (["run", "gmm", "--ksd-samples", "1"], ["ksd_samples must be an integer >= 2, got 1"]),
        (["run", "gmm", "--particles", "1"], ["particles must be an integer >= 2, got 1"]),
        (["run", "gmm", "--steps", "0"], ["steps must be a positive integer, got 0"]),
        (["run", "gmm", "--functional", "js"], ["functional: the experiment 'gmm' has no such option"]),
        (["run", "gmm", "--step-size", "-1"], ["step_size must be a positive number"]),
        (["run", "gmm", "--step-size", "nan"], ["step_size must be a positive number"]),
        (["run", "blr", "--dim", "3"], ["dim: the experiment 'blr' has no such option"]),
        (["run", "gmm", "--resume"], ["resume: ", "holds no run"]),
        (["run", "gmm", "--out", "file"], ["out: file is a file"]),
        (["run", "gmm", "--out", "full"], ["out: full is not empty"]),
    ],
)
def test_bad_arguments(tmp_path, arguments, parts):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    assert_one_line(call(*arguments), *parts)


def test_an_occupied_folder_and_a_changed_option(tmp_path):
    assert call("run", "gmm", *QUICK, "--out", "out").exit_code == 0
    before = (tmp_path / "out" / "run.json").read_bytes()
    assert_one_line(call("run", "gmm", *QUICK, "--out", "out"), "out: out holds another run", "--resume")
    assert_one_line(call("run", "gmm", "--out", "out", "--resume", "--seed", 9), "seed can't change")
    assert_one_line(call("run", "blr", "--out", "out", "--resume"), "holds a run of 'gmm'")
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_a_diverging_run_names_the_step(tmp_path, monkeypatch):
    from gwf_fast.potentials import GaussianMixture

    monkeypatch.setattr(GaussianMixture, "log_density", lambda self, x: x.sum(-1) * torch.nan)
    result = call("run", "gmm", *QUICK)
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: JKO step 1: ")
    record = json.loads((tmp_path / "runs" / "gmm" / "run.json").read_text())
    assert record["status"] == "failed" and record["error"].startswith("JKO step 1: ")


def test_a_folder_of_a_run_that_was_killed_before_it_began(tmp_path):
    (tmp_path / "out").mkdir()
    for name in (".lock", ".run.json.tmp"):
        (tmp_path / "out" / name).write_text("half")
    assert_one_line(call("run", "gmm", "--out", "out", "--resume"), "out holds no run")
    assert call("run", "gmm", *QUICK, "--out", "out").exit_code == 0


def test_two_commands_in_one_folder(tmp_path):
    with RunFolder(tmp_path / "out"):
        assert_one_line(call("run", "gmm", *QUICK, "--out", "out"), "out: ", "is being written by another run")
    assert call("run", "gmm", *QUICK, "--out", "out").exit_code == 0
    with RunFolder(tmp_path / "out"):
        assert_one_line(call("run", "gmm", "--out", "out", "--resume"), "out: ", "is being written by another run")


def test_info():
    result = call("info")
    assert result.exit_code == 0, result.output
    assert "torch" in result.output and "threads" in result.output and "backends" in result.output


def test_bench_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "lib" / "gwf_fast" / "cli.py"))
    assert_one_line(call("bench"), "bench: ", "source repository")


def test_help_is_quick_and_complete():
    result = call("run", "--help")
    assert result.exit_code == 0
    for option in ("--particles", "--dim", "--steps", "--out", "--resume", "--seed", "--input"):
        assert option in result.output


@pytest.mark.parametrize("name", NAMES)
def test_help_of_an_experiment_lists_its_own_options(name):
    result = call("run", name, "--help")
    assert result.exit_code == 0, result.output
    experiment = find(name)
    listed = {word for word in result.output.split() if word.startswith("--")}
    assert listed == {base.spelled(o) for o in experiment.options()} | {"--out", "--resume", "--threads", "--help"}
    assert experiment.summary.split()[0] in call("run", "--help").output


def test_an_argument_too_many():
    assert_one_line(call("run", "gmm", "digits"), "unexpected argument 'digits'")
    assert_one_line(call("run", "gmm", "--dimm=3"), "dimm: the experiment 'gmm' has no such option")


def _study(settings):
    def flow(seed):
        return JKOFlow(
            SquaredMMD(torch.eye(2), Gaussian(1.0)),
            2,
            0.5,
            training=Training(batch_size=8, iterations=2, pool_size=20),
            seed=seed,
        )

    members = {
        name: Flow(flow(settings.seed + k), lambda n: torch.randn(n, 2), settings.steps) for k, name in enumerate("ab")
    }
    return base.Problem(
        Study(members),
        lambda results, path: path.write_text(" ".join(results)),  # type: ignore[arg-type]
        lambda results: {name: result.particles.mean().item() for name, result in results.items()},
    )


def test_a_study_of_several_flows_is_interrupted_and_resumed(tmp_path, monkeypatch):
    defaults = base.FlowSettings(particles=20, steps=3, step_size=0.5, iterations=2, batch_size=8)
    study = base.Experiment("a-study", "two flows", defaults, _study)
    monkeypatch.setattr(runner, "find", lambda name: study)
    lines = []
    arguments: dict[str, Any] = {"resume": False, "say": lines.append}
    whole = runner.run("a-study", {}, tmp_path / "whole", **arguments)
    assert lines == ["a-study: 2 runs: a, b"] + [f"[{k}/2] {n}: {_flow_line(k - 1)}" for k, n in ((1, "a"), (2, "b"))]
    step, calls = JKOFlow.step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:  # the second step of the second flow
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(JKOFlow, "step", interrupted)
    with pytest.raises(runner.Interrupted, match=r"gwf-fast run a-study --out \S*broken --resume"):
        runner.run("a-study", {}, tmp_path / "broken", **arguments)
    broken = runner.run("a-study", {}, tmp_path / "broken", resume=True, say=lines.append)
    assert len(calls) == 7  # no step was done twice
    assert broken == whole
    for name in "ab":
        assert (tmp_path / "broken" / name / "history.csv").exists()
        samples = [np.load(tmp_path / folder / name / "samples.npy") for folder in ("whole", "broken")]
        assert np.array_equal(*samples)
    assert runner.artefacts(tmp_path / "broken") == ["a/", "b/", "figure.png", "run.json"]


def _flow_line(seed):
    return f"D = 2, 20 particles, 3 JKO steps of size 0.5, seed {seed}"
