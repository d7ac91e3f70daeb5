"""Checkpoints of version 0.1 name modules that are elsewhere now: they are read, and go on as they did then."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.checkpoint import run_folder
from gwf_fast.checkpoint.portable import NotPortableError, pack, portable, unpack

FORMERLY = {
    "gwf_fast.functionals.base": "gwf_fast.functional",
    "gwf_fast.functionals.adversarial": "gwf_fast.adversarial",
    "gwf_fast.functionals.energies": "gwf_fast.energies",
    "gwf_fast.flows.training": "gwf_fast.training",
    "gwf_fast.pairs.kernels": "gwf_fast.radial",
    "gwf_fast.potentials": "gwf_fast.potentials",
    "gwf_fast.nn.mlp": None,  # networks were named alone
    "gwf_fast.nn.icnn": None,
}
METHODS = {"NUFFT": "nufft", "Auto": "auto"}
POINTS = torch.linspace(-1, 1, 80).reshape(40, 2)
KERNEL = 0.5 * gwf.Gaussian(1.0) + gwf.Laplace(2.0)
FLOWS = {
    "density": (gwf.KL(gwf.potentials.Gaussian(torch.ones(2), torch.eye(2))), gwf.nn.ICNNGradient(2, [8])),
    "samples": (gwf.JensenShannon(POINTS), None),
    "kernel": (gwf.SquaredMMD(POINTS, KERNEL), gwf.nn.MLP([2, 8, 2], residual=True)),
    "adversarial": (gwf.IPM(POINTS), None),
    "interactions": (
        gwf.Interaction(gwf.Riesz(), gwf.NUFFT(1e-3))
        + gwf.GeneralizedEntropy(1, 0.5)
        + gwf.Interaction(KERNEL, "exact"),
        None,
    ),
    "sum": (gwf.Interaction(gwf.Riesz()) + 0.1 * gwf.GeneralizedEntropy(2), gwf.nn.ICNNGradient(2, [8])),
}


def aged(value):
    """JSON as version 0.1 wrote it."""
    if isinstance(value, list):
        return [aged(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class") in METHODS:
        return METHODS[value["class"]]
    if "class" in value:
        if value["class"] in ("Interaction", "GeneralizedEntropy"):  # the tolerance stood beside the method
            arguments = value["arguments"]
            tolerance = arguments["method"]["arguments"]["tolerance"] if arguments["method"] != "exact" else 1e-5
            value = value | {"arguments": arguments | {"tolerance": tolerance}}
        former = FORMERLY[value["module"]]
        value = {key: item for key, item in value.items() if key != "module"}
        value |= {} if former is None else {"module": former}
    return {key: aged(item) for key, item in value.items()}


def age(folder):
    manifest = json.loads((folder / run_folder.MANIFEST).read_text())
    with run_folder.RunFolder.existing(folder) as held:
        held.commit(aged({key: value for key, value in manifest.items() if key != "checksum"}))


@pytest.mark.parametrize("name", FLOWS)
def test_a_former_flow_goes_on(tmp_path, name):
    functional, map = FLOWS[name]
    options = {"scheme": "explicit"} if name == "interactions" else {"map": map}
    flow = gwf.JKOFlow(functional, 2, 0.1, training=gwf.Training(batch_size=16, iterations=3), **options)
    x0 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    flow.run(x0, 2, progress=False, checkpoint=tmp_path)
    age(tmp_path)
    resumed = gwf.JKOFlow.resume(tmp_path, n_steps=3, progress=False)
    assert torch.equal(resumed.particles, flow.run(x0, 3, progress=False).particles)


def test_a_former_drifting_model_goes_on(tmp_path):
    model = gwf.DriftingModel("mmd", 2, options={"kernel": KERNEL}, generator=gwf.nn.MLP([32, 8, 2]), batch_size=16)
    model.run(POINTS, 3, progress=False, checkpoint=tmp_path)
    age(tmp_path)
    resumed = gwf.DriftingModel.resume(tmp_path, n_steps=5, progress=False)
    want = model.run(POINTS, 5, progress=False).generator.state_dict()
    assert all(torch.equal(value, want[key]) for key, value in resumed.generator.state_dict().items())


def test_only_marked_classes_are_stored():
    class Own(gwf.SquaredMMD):
        """As a user may derive it."""

    with pytest.raises(NotPortableError, match=r"x \(Own\) can't be stored"):
        pack(Own(POINTS, KERNEL), {}, "x")
    with pytest.raises(ValueError, match="unknown class 'Functional'"):
        unpack({"class": "Functional", "module": "gwf_fast.functionals.base", "arguments": {}}, {})
    with pytest.raises(ValueError, match="unknown class 'Path'"):
        unpack({"class": "Path", "module": "pathlib", "arguments": {}}, {})


@portable
class Marked:
    """A user's class with arguments of its own."""

    def __init__(self, sizes):
        self.sizes = sizes

    def portable_arguments(self):
        if not self.sizes:
            raise ValueError("an empty one")
        return {"sizes": self.sizes}


def test_a_marked_class_is_stored():
    stored = json.loads(json.dumps(pack(Marked([1, 2]), {}, "x")))
    assert unpack(stored, {}).sizes == [1, 2]
    with pytest.raises(NotPortableError, match=r"x \(an empty one\) can't be stored"):
        pack(Marked([]), {}, "x")


FORMER = Path(__file__).parent / "former"
"""Runs that version 0.1 (0fd14ef) wrote, in float64 by the engine "torch", and what it made of them in the end."""


def former(name, folder):
    shutil.copytree(FORMER / name, folder, dirs_exist_ok=True)
    return torch.tensor(json.loads((folder / "expected.json").read_text()), dtype=torch.float64)


@pytest.mark.parametrize("name", ["density", "sum", "generator"])
def test_a_flow_of_version_0_1_goes_on(tmp_path, name):
    """Particles of its third step; up to rounding, for other processors sum in other orders."""
    expected = former(name, tmp_path)
    resumed = gwf.JKOFlow.resume(tmp_path, n_steps=3, progress=False)
    torch.testing.assert_close(resumed.particles, expected, rtol=1e-10, atol=1e-12)
    before = json.loads((FORMER / name / run_folder.MANIFEST).read_text())["history"]
    assert [record.loss for record in resumed.history[:2]] == [record["loss"] for record in before]


def test_a_drifting_model_of_version_0_1_goes_on(tmp_path):
    expected = former("drifting", tmp_path)
    resumed = gwf.DriftingModel.resume(tmp_path, n_steps=9, progress=False)
    z = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    torch.testing.assert_close(resumed.generator(z).detach(), expected, rtol=1e-10, atol=1e-12)
