"""Bayesian logistic regression on public data sets, beside the accuracies of Fan et al. (2022), table 5. Slow."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gwf_fast import cli

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "blr"
# Accuracy in the paper; the margin is two standard errors of a proportion on the test rows, a fifth of all.
PAPER = {"banana": (0.55, 0.031), "german": (0.67, 0.067), "twonorm": (0.98, 0.008), "splice": (0.85, 0.029)}
PAPER["diabetis"] = (0.78, 0.067)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_accuracy_is_not_below_the_papers(tmp_path, name):
    path = DATA / f"{name}.mat"
    if not path.exists():
        pytest.skip(f"{name}.mat is not beside the project (../shared/data/blr)")
    pytest.importorskip("scipy", reason=".mat files need SciPy")
    result = CliRunner().invoke(cli.app, ["run", "blr", "--input", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("test accuracy: ")]
    accuracy, margin = PAPER[name]
    assert float(line.split(": ")[1]) > accuracy - margin
