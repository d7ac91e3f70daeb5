"""The version is said once to packagers and once to programs, alike, and checkpoints carry it."""

import json
import re
from pathlib import Path

import pytest
import torch

import gwf_fast as gwf

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


@pytest.mark.skipif(not PROJECT.is_file(), reason="needs the source tree")
def test_it_is_that_of_the_project():
    assert re.search(r'^version = "(.+)"$', PROJECT.read_text(), re.MULTILINE)[1] == gwf.__version__


def test_checkpoints_record_it(tmp_path):
    x = torch.randn(30, 2)
    flow = gwf.JKOFlow(gwf.GeneralizedEntropy(2), 2, 0.1, training=gwf.Training(iterations=2, batch_size=8))
    assert isinstance(flow.run(x, 1, checkpoint=tmp_path / "flow"), gwf.FlowResult)
    model = gwf.DriftingModel("parzen_kl", dim=2, options={"bandwidth": 1.0}, batch_size=8)
    assert isinstance(model.run(x, 1, checkpoint=tmp_path / "drifting"), gwf.DriftingResult)
    for folder in ("flow", "drifting"):
        (manifest,) = [p for p in (tmp_path / folder).glob("*.json") if "gwf_fast" in p.read_text()]
        assert json.loads(manifest.read_text())["gwf_fast"] == gwf.__version__
