"""Carries out one experiment in one output folder, and picks an interrupted one up again."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from gwf_fast import checkpoint
from gwf_fast.experiments import find
from gwf_fast.experiments.base import SPECIAL, Experiment, Problem, Settings
from gwf_fast.state import FlowResult, StepRecord

RUN = "run.json"
CHECKPOINT = "checkpoint"
_RECORDED = ("gwf_fast", "torch", "numpy", "safetensors", "matplotlib", "scikit-learn", "scipy")


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user pressed Ctrl-C; the argument is what to type to go on."""


def run(name: str, given: dict[str, Any], out: Path, *, resume: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run an experiment and leave samples, maps, history, figure and configuration in a folder.

    Args:
        name: Of the experiment.
        given: The settings that the user gave; with ``resume`` only ``steps`` may differ from before.
        out: The folder; must be empty or new, unless ``resume``.
        resume: Whether to go on with the run in the folder.
        say: Receives lines for the user.

    Returns:
        The metrics.

    Raises:
        ValueError: On bad settings or input, or if the folder holds another run.
        Interrupted: On Ctrl-C.
    """
    experiment = find(name)
    settings = _stored(out, name, given) if resume else _settled(experiment, given)
    problem = experiment.build(settings)
    if not resume:
        _claim(out)
    record = {
        "experiment": name,
        "status": "running",
        "settings": dataclasses.asdict(settings),
        "dim": problem.flow.dim,
        "step_size": problem.flow.step_size,
        "training": dataclasses.asdict(problem.flow.training),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    _write_json(out / RUN, record)
    say(
        f"{name}: D = {problem.flow.dim}, {problem.flow.training.pool_size} particles, {settings.steps} JKO steps "
        f"of size {problem.flow.step_size:g}, seed {settings.seed}"
    )
    start = time.perf_counter()
    try:
        result = _flow(problem, settings, out)
    except KeyboardInterrupt:
        raise Interrupted(f"gwf-fast run {name} --out {out} --resume") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        metrics = _leave(problem, result, out)
    seconds = time.perf_counter() - start
    _write_json(out / RUN, {**record, "status": "finished", "seconds": seconds, "metrics": metrics})
    return metrics


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {}
    for package in _RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _flow(problem: Problem, settings: Settings, out: Path) -> FlowResult:
    folder = out / CHECKPOINT
    if not (folder / checkpoint.MANIFEST).exists():  # a new run, or one that was killed before its first checkpoint
        return problem.flow.run(problem.source, settings.steps, checkpoint=folder)
    flow = problem.flow
    return type(flow).resume(
        folder,
        n_steps=settings.steps,
        functional=flow.functional,
        map=flow.map,
        critic=flow.critic,
        x0=problem.source,
    )


def _leave(problem: Problem, result: FlowResult, out: Path) -> dict[str, Any]:
    samples = problem.decode(result.particles).numpy()
    with open(out / "samples.npy", "wb") as file:
        np.save(file, samples)
    maps = {f"{k:05d}.{n}": t.contiguous() for k, m in enumerate(result.maps, 1) for n, t in m.state_dict().items()}
    checkpoint.write_atomically(out / "maps.safetensors", save_tensors(maps))
    with open(out / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(StepRecord)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(record) for record in result.history)
    problem.figure(result, out / "figure.png")
    return problem.metrics(result)


def _settled(experiment: Experiment, given: dict[str, Any]) -> Settings:
    """The given settings over the defaults; one that does not apply is an error, not silently dropped."""
    for name in SPECIAL:
        if name in given and name not in experiment.special:
            raise ValueError(f"{name}: the experiment {experiment.name!r} has no such option")
    settings = dataclasses.replace(experiment.defaults, **given)
    for name in ("particles", "steps", "iterations", "batch_size", *({"dim"} & set(experiment.special))):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}: expected a positive integer, got {getattr(settings, name)}")
    return settings


def _stored(out: Path, name: str, given: dict[str, Any]) -> Settings:
    path = out / RUN
    try:
        record = json.loads(path.read_text())
        settings = Settings(**record["settings"])
        stored_name = record["experiment"]
    except FileNotFoundError:
        raise ValueError(f"resume: {out} holds no run ({RUN} is missing)") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"resume: {path} is not the record of a run") from None
    if stored_name != name:
        raise ValueError(f"resume: {out} holds a run of {stored_name!r}, not of {name!r}")
    changed = [key for key, value in given.items() if key != "steps" and value != getattr(settings, key)]
    if changed:
        raise ValueError(f"resume: {', '.join(changed)} can't change in a run that has begun; only --steps can")
    return dataclasses.replace(settings, steps=given.get("steps", settings.steps))


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file, expected a folder")
    if (out / RUN).exists():
        raise ValueError(f"out: {out} holds another run; choose another folder, or go on with --resume")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out: {out} is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    checkpoint.write_atomically(path, json.dumps(value, indent=1).encode())
