"""Checkpoints: bit for bit after a kill, atomic, no pickle, clear errors."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch import nn

from gwf_fast.checkpoint import run_folder
from gwf_fast.checkpoint.portable import NotPortableError, pack, unpack
from gwf_fast.flows import jko_checkpoint as checkpoint
from gwf_fast.flows.drifting import DriftingModel
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import KL, FDivergence, JensenShannon, Potential, SquaredMMD
from gwf_fast.nn import MLP
from gwf_fast.pairs.kernels import Riesz
from gwf_fast.potentials import BayesianLogisticRegression, Gaussian, GaussianMixture

STEPS = 5
# One program for the run that is killed and the one that is not. Dropout shows that modules' own draws repeat too.
SCRIPT = f"""
import sys, time, torch
from torch import nn
from gwf_fast.functionals.base import KL, JensenShannon
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.potentials import GaussianMixture
from gwf_fast.flows.training import Training

torch.set_num_threads(1)

def make_map():
    return nn.Sequential(nn.Linear(2, 16), nn.PReLU(), nn.Dropout(0.1), nn.Linear(16, 2))

def source(n):
    return torch.randn(n, 2)

def flow():
    target = GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 1.0]]))
    functional = 0.7 * KL(target) + JensenShannon(torch.linspace(-1, 1, 60).reshape(30, 2))
    training = Training(batch_size=32, iterations=20, critic_steps=2, pool_size=256)
    return JKOFlow(functional, 2, 0.2, map=make_map, training=training, seed=11)

if __name__ == "__main__":
    flow().run(source, {STEPS}, progress=False, checkpoint=sys.argv[1])
"""


def bits(folder):
    """Everything a finished run left: all tensors of all files, and the history without its timings."""
    manifest = json.loads((folder / run_folder.MANIFEST).read_text())
    files = [manifest["files"]["moving"], manifest["files"]["fixed"], *manifest["files"]["maps"]]
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in manifest["history"]]
    tensors = {(name, k): v for name in files for k, v in run_folder.read_values(folder / name).items()}
    return manifest["step"], history, tensors


def assert_same(a, b):
    assert a[0] == b[0] and a[1] == b[1] and a[2].keys() == b[2].keys() and len(a[2]) > 20
    for name, tensor in a[2].items():
        assert tensor.dtype == b[2][name].dtype and torch.equal(tensor, b[2][name]), name


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    script = tmp_path / "killed_run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([sys.executable, str(script), str(whole)], check=True, env=environment, timeout=300)

    process = subprocess.Popen([sys.executable, str(script), str(broken)], env=environment)
    try:
        deadline = time.monotonic() + 300
        while not list(broken.glob("map-00002*")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run made no progress"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    interrupted = json.loads((broken / run_folder.MANIFEST).read_text())["step"]
    assert 1 <= interrupted < STEPS

    resume = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import killed_run as r\n"
        f"r.JKOFlow.resume({str(broken)!r}, progress=False, map=r.make_map, x0=r.source)"
    )
    subprocess.run([sys.executable, "-c", resume], check=True, env=environment, timeout=300)
    assert_same(bits(whole), bits(broken))


def make_flow(**kwargs):
    functional = KL(Gaussian(torch.ones(2), torch.eye(2)))
    training = Training(batch_size=16, iterations=4, lr_schedule="cosine")
    return JKOFlow(functional, 2, 0.2, training=training, seed=5, **kwargs)


def test_resume_needs_nothing_where_all_is_data(tmp_path):
    x0 = torch.randn(40, 2)
    whole = make_flow().run(x0, 3, progress=False)
    make_flow().run(x0, 2, progress=False, checkpoint=tmp_path / "c")
    resumed = JKOFlow.resume(tmp_path / "c", n_steps=3, progress=False)
    assert torch.equal(whole.particles, resumed.particles)
    assert torch.equal(whole.push(x0), resumed.push(x0))
    strip = [(r.step, r.loss, r.value, r.w2) for r in whole.history]
    assert strip == [(r.step, r.loss, r.value, r.w2) for r in resumed.history]
    again = JKOFlow.resume(tmp_path / "c", progress=False)  # nothing left to do
    assert torch.equal(again.particles, resumed.particles)


@pytest.mark.parametrize("fail_at", range(1, 5))
def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch, fail_at):
    """The disk fills up at the n-th file of the second step; what was there before still resumes."""
    folder, flow, x0 = tmp_path / "c", make_flow(), torch.randn(40, 2)
    state = flow.step(flow.init(x0))
    following = flow.step(state)
    calls, real = [], os.replace

    def failing(source, destination):
        calls.append(destination)
        if len(calls) == fail_at:
            raise OSError(errno.ENOSPC, "no space left")
        real(source, destination)

    with run_folder.RunFolder(folder) as held:
        keeper = checkpoint.Keeper(held, flow, 3, x0)
        keeper.keep(state)
        monkeypatch.setattr(os, "replace", failing)
        if fail_at <= 3:  # a map, the state, the manifest
            with pytest.raises(OSError, match=r"no space left: .*\.(safetensors|json)"):
                keeper.keep(following)
        else:
            keeper.keep(following)
    monkeypatch.undo()
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
    _, loaded, _, _ = checkpoint.load(folder, JKOFlow)
    assert loaded.step == (1 if fail_at <= 3 else 2)
    assert torch.equal(loaded.particles, (state if fail_at <= 3 else following).particles)


def test_a_diverging_run_keeps_its_last_checkpoint(tmp_path):
    folder, x0, state = tmp_path / "c", torch.randn(40, 2), {"poison": False}

    def V(x):
        return x.square().sum(-1) * (float("nan") if state["poison"] else 1.0)

    flow = JKOFlow(Potential(V), 2, 0.2, training=Training(batch_size=16, iterations=4))
    flow.run(x0, 1, progress=False, checkpoint=folder)
    state["poison"] = True
    with pytest.raises(ArithmeticError, match="JKO step 2"):
        JKOFlow.resume(folder, n_steps=3, functional=flow.functional, progress=False)
    state["poison"] = False
    assert JKOFlow.resume(folder, n_steps=3, functional=flow.functional, progress=False).state.step == 3


def test_an_occupied_folder_is_refused(tmp_path):
    make_flow().run(torch.randn(20, 2), 1, progress=False, checkpoint=tmp_path)
    with pytest.raises(FileExistsError, match="holds another run"):
        make_flow().run(torch.randn(20, 2), 1, progress=False, checkpoint=tmp_path)


def test_what_is_code_must_be_given_again(tmp_path):
    flow = JKOFlow(Potential(lambda x: x.sum(-1)), 2, 0.2, map=lambda: nn.Linear(2, 2), training=Training(iterations=1))
    flow.run(lambda n: torch.randn(n, 2), 1, progress=False, checkpoint=tmp_path)
    given: dict[str, Any] = {"functional": flow.functional, "map": flow.map, "x0": lambda n: torch.randn(n, 2)}
    for part in given:
        rest: dict[str, Any] = {k: v for k, v in given.items() if k != part}
        with pytest.raises(ValueError, match=f"give resume\\(\\) the argument {part}="):
            JKOFlow.resume(tmp_path, progress=False, **rest)
    assert JKOFlow.resume(tmp_path, n_steps=2, progress=False, **given).state.step == 2
    with pytest.raises(ValueError, match="does not fit the network"):
        JKOFlow.resume(tmp_path, **{**given, "map": MLP([2, 3, 2])})


def test_unreadable_checkpoints(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint\.json"):
        JKOFlow.resume(tmp_path)
    make_flow().run(torch.randn(20, 2), 1, progress=False, checkpoint=tmp_path)
    (state,) = tmp_path.glob("state-*")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged: its content is not what was written"):
        JKOFlow.resume(tmp_path)
    state.unlink()
    with pytest.raises(ValueError, match="can't read"):
        JKOFlow.resume(tmp_path)
    manifest = json.loads((tmp_path / run_folder.MANIFEST).read_text())
    (tmp_path / run_folder.MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        JKOFlow.resume(tmp_path)
    (tmp_path / run_folder.MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        JKOFlow.resume(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        KL(GaussianMixture(torch.randn(3, 2), 0.5, torch.ones(3))),
        0.5 * JensenShannon(torch.randn(5, 2)) + 2 * FDivergence("alpha", torch.randn(5, 2), 0.5),
        KL(BayesianLogisticRegression(torch.randn(5, 2), torch.ones(5), rate=2.0)),
        Training(critic_lr=0.1, betas=(0.5, 0.9)),
        MLP([2, 4, 2], "silu", residual=True),
    ],
    ids=["mixture", "sum", "blr", "training", "mlp"],
)
def test_pack_and_unpack_are_inverse(value):
    tensors = {}
    stored = json.loads(json.dumps(pack(value, tensors, "root")))
    back = unpack(stored, tensors)
    assert type(back) is type(value)
    repeated = {}
    assert pack(back, repeated, "root") == stored
    assert repeated.keys() == tensors.keys() and all(torch.equal(repeated[k], tensors[k]) for k in tensors)


def test_code_is_neither_packed_nor_unpacked():
    with pytest.raises(NotPortableError, match=r"functional.V \(function\) can't be stored"):
        pack(Potential(lambda x: x), {}, "functional")
    with pytest.raises(ValueError, match="unknown class 'system'"):
        unpack({"class": "system", "module": "os", "arguments": {}}, {})
    with pytest.raises(ValueError, match="is missing"):
        unpack({"tensor": "gone"}, {})


def test_tensors_that_share_memory(tmp_path):
    """P_0 is the target too, in part: each is written."""
    x = torch.randn(40, 2)
    flow = JKOFlow(SquaredMMD(x[:30], Riesz()), 2, 0.2, training=Training(batch_size=8, iterations=2), seed=1)
    whole = flow.run(x, 2, progress=False)
    flow.run(x, 1, progress=False, checkpoint=tmp_path)
    assert torch.equal(JKOFlow.resume(tmp_path, n_steps=2, progress=False).particles, whole.particles)


class Odd(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.secret = {1, 2}

    def get_extra_state(self):
        return self.secret

    def set_extra_state(self, state):
        self.secret = state


@pytest.mark.parametrize("part", ["map", "critic"])
def test_a_state_that_cannot_be_stored_is_refused_before_the_run(tmp_path, part):
    flow = JKOFlow(
        KL(Gaussian(torch.ones(2), torch.eye(2))) if part == "map" else JensenShannon(torch.randn(30, 2)),
        2,
        0.2,
        training=Training(batch_size=16, iterations=2),
        **{part: Odd if part == "map" else lambda: nn.Sequential(Odd(), nn.Linear(2, 1))},  # type: ignore[arg-type]
    )
    with pytest.raises(NotPortableError, match=rf"^{part}\.\S*_extra_state \(set\) can't be stored"):
        flow.run(torch.randn(20, 2), 1, progress=False, checkpoint=tmp_path)
    assert flow.run(torch.randn(20, 2), 1, progress=False).state.step == 1


def test_what_a_killed_run_left_is_not_taken_for_a_later_ones(tmp_path):
    """A map beyond the manifest may be of another machine, whose roundings are others; so may a half written file."""
    x0 = torch.randn(40, 2)
    whole = make_flow().run(x0, 3, progress=False)
    make_flow().run(x0, 2, progress=False, checkpoint=tmp_path)
    other = JKOFlow(make_flow().functional, 2, 0.2, training=Training(batch_size=16, iterations=2), seed=8).run(
        x0, 3, progress=False
    )
    for name in ("map-00003.safetensors", "map-00003-0123456789abcdef.safetensors"):
        run_folder.write_atomically(tmp_path / name, run_folder.serialize(other.maps[2].state_dict()))
    for name in (".state-00003.safetensors.123.tmp", ".checkpoint.json.tmp"):
        (tmp_path / name).write_bytes(b"half")
    resumed = JKOFlow.resume(tmp_path, n_steps=3, progress=False)
    assert torch.equal(resumed.push(x0), whole.push(x0)) and torch.equal(resumed.particles, whole.particles)
    _, loaded, _, _ = checkpoint.load(tmp_path, JKOFlow)
    assert torch.equal(loaded.maps[2](x0), resumed.maps[2](x0))
    named = json.loads((tmp_path / run_folder.MANIFEST).read_text())["files"]
    expected = {named["fixed"], named["moving"], *named["maps"], run_folder.MANIFEST, ".lock"}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_a_checkpoint_of_version_1_goes_on(tmp_path):
    """Its names have no digests, its manifest no checksum."""
    x0 = torch.randn(40, 2)
    whole = make_flow().run(x0, 3, progress=False)
    make_flow().run(x0, 2, progress=False, checkpoint=tmp_path)
    path = tmp_path / run_folder.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    old = re.sub(r"-[0-9a-f]{16}\.safetensors", ".safetensors", json.dumps(manifest))
    path.write_text(old)
    for file in tmp_path.glob("*.safetensors"):
        file.rename(re.sub(r"-[0-9a-f]{16}\.safetensors", ".safetensors", str(file)))
    assert torch.equal(JKOFlow.resume(tmp_path, n_steps=3, progress=False).particles, whole.particles)
    assert all(re.search(r"-[0-9a-f]{16}\.safetensors", file.name) for file in tmp_path.glob("*.safetensors"))


def test_one_writer_at_a_time(tmp_path):
    with run_folder.RunFolder(tmp_path) as held:
        for call in (
            lambda: make_flow().run(torch.randn(20, 2), 1, progress=False, checkpoint=tmp_path),
            lambda: DriftingModel("energy", 2).run(torch.randn(20, 2), 1, progress=False, checkpoint=tmp_path),
        ):
            with pytest.raises(BlockingIOError, match=rf"is being written by another run \(process {os.getpid()}\)"):
                call()
        make_flow().run(torch.randn(20, 2), 1, progress=False, checkpoint=held)
        with pytest.raises(BlockingIOError, match="is being written"):
            JKOFlow.resume(tmp_path)
    assert JKOFlow.resume(tmp_path, n_steps=2, progress=False).state.step == 2


def test_where_there_are_no_locks(tmp_path, monkeypatch):
    """As on some parallel file systems."""

    def refuses(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuses)
    with pytest.warns(UserWarning, match="has no locks; write from one process only"):
        make_flow().run(torch.randn(20, 2), 1, progress=False, checkpoint=tmp_path)


def test_a_run_of_a_gpu_is_read_where_there_is_none(tmp_path, monkeypatch):
    """And goes back to its device where there is one: a file notes which of its tensors were there."""
    values = {"here": torch.ones(2), "there": torch.zeros(3), "plain": {"nested": torch.ones(1)}}
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: len(tensor) == 3))
    path = tmp_path / "file.safetensors"
    path.write_bytes(run_folder.serialize(values))
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch.equal(run_folder.read_values(path)["there"], torch.zeros(3))
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: moved.append(len(tensor)) or tensor)
    assert run_folder.read_values(path).keys() == values.keys() and moved == [3]
