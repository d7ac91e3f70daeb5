"""A checkpoint whose tensors do not fit the modules, or whose manifest is not one, ends in one line."""

import json
import random

import pytest
import torch

from gwf_fast.checkpoint import run_folder
from gwf_fast.flows.drifting import DriftingModel
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import JensenShannon

TARGET = torch.linspace(-1, 1, 80).reshape(40, 2)


def run_flow(folder):
    flow = JKOFlow(JensenShannon(TARGET), 2, 0.2, training=Training(batch_size=16, iterations=3))
    flow.run(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), 2, progress=False, checkpoint=folder)


def run_drifting(folder):
    model = DriftingModel("energy", 2, batch_size=16)
    model.run(TARGET, 3, progress=False, checkpoint=folder)


RUNS = {"flow": (run_flow, JKOFlow), "drifting": (run_drifting, DriftingModel)}


@pytest.fixture(params=RUNS)
def kept(request, tmp_path):
    """A folder with a run, its manifest, and how it is resumed."""
    run, cls = RUNS[request.param]
    run(tmp_path / "run")
    return tmp_path / "run", json.loads((tmp_path / "run" / run_folder.MANIFEST).read_text()), cls


def rewritten(folder, manifest, change):
    """The moving tensors changed and written again with names and checksums that are right."""
    values = run_folder.read_values(folder / manifest["files"]["moving"])
    change(values)
    with run_folder.RunFolder.existing(folder) as held:
        name = held.put("state-changed", lambda: values)
        rest = {key: value for key, value in manifest.items() if key != "checksum"}
        held.commit({**rest, "files": {**manifest["files"], "moving": name}})


def moments(values):
    return next(name for name, value in values.items() if name.endswith("exp_avg") and value.ndim == 2)


def wider(values):
    values[moments(values)] = torch.zeros(3, 3)


def half(values):
    values[moments(values)] = values[moments(values)].half()


def too_many(values):
    name = moments(values)
    parts = name.split(".")
    parts[-2] = "99"
    values[".".join(parts)] = values[name]


def weights(values):
    name = next(n for n, v in values.items() if n.startswith(("critic.", "generator.")) and v.ndim == 2)
    values[name] = torch.zeros(5, 5)


@pytest.mark.parametrize("change", [wider, half, too_many, weights])
def test_tensors_of_another_shape_are_refused(kept, change):
    """They corrupted memory when the run went on."""
    folder, manifest, cls = kept
    rewritten(folder, manifest, change)
    with pytest.raises(ValueError, match="checkpoint: ") as caught:
        cls.resume(folder, n_steps=5, progress=False)
    assert "\n" not in str(caught.value)


def narrow(values):
    values["particles"] = values["particles"][:, :1].contiguous()


def nan(values):
    values["particles"][0, 0] = torch.nan


def integers(values):
    values["particles"] = values["particles"].long()


@pytest.mark.parametrize("change", [narrow, nan, integers, lambda values: values.pop("particles")])
def test_particles_that_are_none_are_refused(tmp_path, change):
    run_flow(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / run_folder.MANIFEST).read_text())
    rewritten(tmp_path / "run", manifest, change)
    with pytest.raises(ValueError, match="particles"):
        JKOFlow.resume(tmp_path / "run", progress=False)


def test_moments_that_the_manifest_does_not_name_are_refused(tmp_path):
    """The run went on with an optimiser that had forgotten them."""
    run_flow(tmp_path / "run")
    path = tmp_path / "run" / run_folder.MANIFEST
    manifest = json.loads(path.read_text())
    manifest.pop("checksum")
    assert set(manifest["optimizers"]) == {"map_optimizer", "critic_optimizer"}
    for name in manifest["optimizers"]:
        named = {key: value for key, value in manifest["optimizers"].items() if key != name}
        path.write_text(json.dumps({**manifest, "optimizers": named}))
        message = f"checkpoint: .* has moments of {name}, which .* does not name"
        with pytest.raises(ValueError, match=message) as caught:
            JKOFlow.resume(tmp_path / "run", progress=False)
        assert "\n" not in str(caught.value)


def test_malformed_manifests_end_in_one_line(kept):
    folder, manifest, cls = kept
    path = folder / run_folder.MANIFEST
    manifest.pop("checksum")
    draws = random.Random(0)
    for key in list(manifest):
        for value in (None, [], {}, "text", -1):
            if key in ("torch", "gwf_fast", "seconds", "n_steps", "step", "pending", "history", "kind"):
                continue  # numbers, or told before
            broken = {**manifest, key: value}
            if draws.random() < 0.3:
                broken.pop(key)
            path.write_text(json.dumps(broken))
            with pytest.raises(ValueError, match=r"checkpoint: |scheme|parametrization|latent_dim") as caught:
                cls.resume(folder, n_steps=manifest["step"], progress=False)
            assert "\n" not in str(caught.value)
