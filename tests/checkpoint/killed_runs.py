"""Runs that are killed, or fail: forked from one warm process, so that a hundred of them take a minute.

``python tests/checkpoint/killed_runs.py KIND HOW FOLDER [COUNT]``: an uninterrupted run goes to FOLDER/whole, the
others beside it, and whatever befalls them, they must end with the same bits, or in one line. Prints what happened, as
JSON.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gwf_fast import JKOFlow
from gwf_fast.checkpoint.run_folder import MANIFEST, read_values
from gwf_fast.drift.learned import LearnedCritic
from gwf_fast.experiments import base, runner
from gwf_fast.experiments.computation import Flow, Study
from gwf_fast.flows import drifting as drifting_model
from gwf_fast.flows.drifting import DriftingModel
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import KL, JensenShannon
from gwf_fast.potentials import GaussianMixture

TARGET = torch.linspace(-1, 1, 60).reshape(30, 2)
REFUSED = 3  # exit code of a run that ended in one line
BROKEN = 4  # of one that ended otherwise
drifting_model._SECONDS = 0.0  # a checkpoint after every update


class Tied(nn.Sequential):
    """Two layers with one weight, statistics of batches, dropout, and a state of its own that is no tensor."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.1), nn.Linear(2, 2))
        self[3].weight = self[0].weight
        self.seen: dict[Any, Any] = {"calls": 0, 3: ("tuple", [1.5, None], torch.ones(2))}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["calls"] += self.training
        return x + super().forward(x)

    def get_extra_state(self) -> object:
        return dict(self.seen)

    def set_extra_state(self, state: Any) -> None:
        self.seen = dict(state)


def source(n: int) -> Tensor:
    return torch.randn(n, 2)


def make_flow(seed: int = 11) -> JKOFlow:
    functional = 0.7 * KL(GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 1.0]]))) + JensenShannon(TARGET)
    training = Training(batch_size=16, iterations=8, critic_steps=1, pool_size=64)
    return JKOFlow(functional, 2, 0.2, map=Tied, training=training, seed=seed)


def flow(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        JKOFlow.resume(folder, progress=False, map=Tied, x0=source)
    else:
        make_flow().run(source, 2, progress=False, checkpoint=folder)


def drifting(folder: Path) -> None:
    critic = LearnedCritic(2, steps=1)
    if (folder / MANIFEST).exists():
        DriftingModel.resume(folder, progress=False, drift=critic, generator=Tied())
    else:
        model = DriftingModel(critic, 2, generator=Tied(), latent_dim=2, batch_size=8, ema=0.9, record_every=2, seed=3)
        model.run(TARGET, 3, progress=False, checkpoint=folder)


def _study(settings: base.FlowSettings) -> base.Problem:
    members = {name: Flow(make_flow(seed), source, settings.steps) for seed, name in enumerate("ab")}
    return base.Problem(
        Study(members),
        lambda results, path: path.write_text(" ".join(results)),  # type: ignore[arg-type]
        lambda results: {name: result.particles.mean().item() for name, result in results.items()},
    )


def command(folder: Path) -> None:
    settings = base.FlowSettings(particles=20, steps=1, step_size=0.5, iterations=2, batch_size=8)
    runner.find = lambda name: base.Experiment("a-study", "two flows", settings, _study)
    runner.run("a-study", {}, folder, resume=(folder / runner.RUN).exists(), say=lambda line: None)


KINDS: dict[str, Callable[[Path], None]] = {"flow": flow, "drifting": drifting, "command": command}


def bits(folder: Path) -> dict[str, object]:
    """Everything in a folder but times: names of checkpoint files have a digest of their content, which is checked."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"):
        name, content = str(path.relative_to(folder)), path.read_bytes()
        if path.suffix == ".json":
            found[name] = _untimed(json.loads(content))
        elif path.suffix == ".csv":
            found[name] = [line.rsplit(",", 1)[0] for line in content.decode().splitlines()]
        else:
            found[name] = content
        if path.suffix == ".safetensors":
            read_values(path)
    return found


def _untimed(value: object) -> object:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if k not in ("seconds", "checksum")}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def assert_same(folder: Path, whole: dict[str, object], case: object) -> None:
    found = bits(folder)
    assert found == whole, (case, sorted(k for k in found.keys() | whole.keys() if found.get(k) != whole.get(k)))


def start(run: Callable[[Path], None], folder: Path, before: Callable[[], object] = lambda: None) -> int:
    """Fork a run; the child's exit code says how it ended."""
    pid = os.fork()
    if pid:
        return pid
    try:
        before()
        run(folder)
    except (ValueError, TypeError, OSError) as error:  # what the command line turns into one line
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(REFUSED if str(error) and "\n" not in str(error) else BROKEN)
    except BaseException:
        traceback.print_exc()
        os._exit(BROKEN)
    os._exit(0)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(count: int) -> Callable[[], None]:
    """A hook that kills the process at its n-th look at, or change of, a file of a run."""
    left = [count]

    def tick() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir") or (event == "open" and "whole" in str(arguments[0])):
            tick()

    def install() -> None:
        sync = os.fsync
        os.fsync = lambda descriptor: (tick(), sync(descriptor))[1]  # type: ignore[assignment]
        sys.addaudithook(hook)

    return install


def every_write(run: Callable[[Path], None], folder: Path, whole: dict[str, object], count: int) -> dict[str, int]:
    """Killed at each operation on files in turn, or at each ``count``-th, then resumed."""
    for n in range(0, 10_000, count):
        broken = folder / f"whole-{n}"
        code = ended(start(run, broken, die_at(n)))
        if code != 0:
            assert code == -signal.SIGKILL, (n, code)
            assert ended(start(run, broken)) == 0, n
        assert_same(broken, whole, n)
        shutil.rmtree(broken)
        if code == 0:
            return {"kills": -(-n // count)}
    raise AssertionError("the run has no end")


def random_moments(run: Callable[[Path], None], folder: Path, whole: dict[str, object], count: int) -> dict[str, int]:
    """Killed at random moments, again and again while it goes on, until it gets through."""
    dice, kills, runs, resumed = random.Random(0), 0, 0, 0
    begin = time.perf_counter()
    assert ended(start(run, folder / "timed")) == 0
    longest = time.perf_counter() - begin
    while kills < count:
        broken, lives = folder / f"broken-{runs}", 0
        while True:
            pid = start(run, broken)
            time.sleep(dice.uniform(0, 1.1 * longest) * (dice.random() < 0.7))
            os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL), code
            if code == 0:
                break
            kills, lives = kills + 1, lives + 1
            if lives == 8:
                assert ended(start(run, broken)) == 0
                break
        runs, resumed = runs + 1, resumed + (lives > 1)
        assert_same(broken, whole, runs)
        shutil.rmtree(broken)
    return {"kills": kills, "runs": runs, "killed_more_than_once": resumed}


def full_disk(run: Callable[[Path], None], folder: Path, whole: dict[str, object], count: int) -> dict[str, int]:
    """Files that can't grow beyond a limit, from nothing to nearly the largest; what was there still goes on."""
    largest = max(p.stat().st_size for p in (folder / "whole").rglob("*") if p.is_file())
    dice, refused = random.Random(1), 0
    for n in range(count):
        broken = folder / f"broken-{n}"
        limit = dice.randrange(largest)
        bounded = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, -1))
        code = ended(start(run, broken, bounded))
        assert code in (0, REFUSED), (limit, code)
        refused += code == REFUSED
        assert not list(broken.rglob("*.tmp"))
        assert ended(start(run, broken)) == 0
        assert_same(broken, whole, limit)
        shutil.rmtree(broken)
    return {"runs": count, "refused": refused}


def read_only(run: Callable[[Path], None], folder: Path, whole: dict[str, object], count: int) -> dict[str, int]:
    """As somebody who may not write there, into a new folder and into one whose run is half done."""
    nobody = (lambda: os.seteuid(65534)) if os.geteuid() == 0 else (lambda: None)
    half = folder / "whole-half"
    assert ended(start(run, half, die_at(40))) == -signal.SIGKILL
    os.chmod(folder, 0o755)
    for path in (half, *half.rglob("*")):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    new = folder / "new"
    new.mkdir(mode=0o555)
    codes = [ended(start(run, each, nobody)) for each in (half, new)]
    assert codes == [REFUSED, REFUSED], codes
    for path in (half, *half.rglob("*"), new):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    assert [ended(start(run, each)) for each in (half, new)] == [0, 0]
    assert_same(half, whole, half)
    assert_same(new, whole, new)
    return {"refused": 2}


def two_writers(run: Callable[[Path], None], folder: Path, whole: dict[str, object], count: int) -> dict[str, int]:
    """Two runs that begin in one folder at once: one is told so, the folder is the other's."""
    refused = 0
    for n in range(count):
        shared = folder / f"shared-{n}"
        codes = sorted(ended(pid) for pid in [start(run, shared), start(run, shared)])
        assert codes in ([0, REFUSED], [0, 0]), (
            codes
        )  # the second may begin when the first has ended, and go on from it
        refused += codes == [0, REFUSED]
        assert_same(shared, whole, n)
        shutil.rmtree(shared)
    return {"pairs": count, "refused": refused}


def damaged(run: Callable[[Path], None], folder: Path, whole: dict[str, object], count: int) -> dict[str, int]:
    """Files cut short, emptied, removed, or with one bit changed."""
    half = folder / "whole-half"
    assert ended(start(run, half, die_at(40))) == -signal.SIGKILL
    files = sorted(p.relative_to(half) for p in half.rglob("*") if p.is_file() and p.name != ".lock")
    dice, refused = random.Random(2), 0
    for n in range(count):
        broken = folder / f"broken-{n}"
        shutil.copytree(half, broken)
        path = broken / files[n % len(files)]
        content = bytearray(path.read_bytes())
        how = n // len(files) % 4 if content else 3
        if how == 0 or how == 2:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        elif how == 1:
            del content[dice.randrange(len(content)) :]
        path.write_bytes(content) if how < 3 else path.unlink()
        code = ended(start(run, broken))
        assert code in (0, REFUSED), (path.name, how, code)
        refused += code == REFUSED
        if code == 0:
            assert_same(broken, whole, (path.name, how))
        shutil.rmtree(broken)
    return {"files": count, "refused": refused}


HOW = {f.__name__: f for f in (every_write, random_moments, full_disk, read_only, two_writers, damaged)}


LAZY = ("torch._dynamo", "tqdm.auto", "gwf_fast.flows.jko_checkpoint", "gwf_fast.flows.drifting_checkpoint",
        "gwf_fast.kernels.cpp.pairs", "gwf_fast.kernels.cpp.primal_dual")  # fmt: skip


def main(kind: str, how: str, folder: str, count: str = "1") -> None:
    for name in LAZY:  # once, not in each child
        importlib.import_module(name)
    run, root = KINDS[kind], Path(folder)
    assert ended(start(run, root / "whole")) == 0
    print(json.dumps(HOW[how](run, root, bits(root / "whole"), int(count))))


if __name__ == "__main__":
    main(*sys.argv[1:])
