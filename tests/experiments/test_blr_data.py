"""Bayesian logistic regression on public data sets: as accurate as maximum likelihood on the same split. Slow.

Accuracies in table 5 of Fan et al. (2022), on splits of their own: banana .55, german .67, diabetis .786, splice .84,
twonorm .982.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gwf_fast import cli
from gwf_fast.experiments import blr

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "blr"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["banana", "german", "diabetis", "splice", "twonorm"])
def test_accuracy_is_that_of_maximum_likelihood(tmp_path, name):
    path = DATA / f"{name}.mat"
    if not path.exists():
        pytest.skip(f"{name}.mat is not beside the project (../shared/data/blr)")
    pytest.importorskip("scipy", reason=".mat files need SciPy")
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the truth here")
    result = CliRunner().invoke(cli.app, ["run", "blr", "--input", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    accuracy = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]["test_accuracy"]
    features, labels, train, test = blr.split(*blr.load(str(path)), seed=0)
    classifier = linear_model.LogisticRegression(max_iter=1000).fit(features[train].numpy(), labels[train].numpy())
    assert accuracy == pytest.approx(classifier.score(features[test].numpy(), labels[test].numpy()), abs=0.02)
