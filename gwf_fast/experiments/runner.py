"""Carries out one experiment in one output folder, and picks an interrupted one up again."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gwf_fast.checkpoint.run_folder import RunFolder, write_atomically
from gwf_fast.experiments import find
from gwf_fast.experiments.base import Experiment, Problem, Settings, spelled
from gwf_fast.experiments.computation import Say
from gwf_fast.randomness.seeded import reproducible

RUN = "run.json"
CHECKPOINT = "checkpoint"
_RECORDED = ("gwf_fast", "torch", "numpy", "safetensors", "matplotlib", "scikit-learn", "scipy")


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user pressed Ctrl-C; the argument is what to type to go on."""


def run(name: str, given: dict[str, Any], out: Path, *, resume: bool, say: Say) -> dict[str, Any]:
    """Run an experiment and leave its artefacts, a figure and the configuration in a folder.

    Args:
        name: Of the experiment.
        given: The settings that the user gave; with ``resume`` only those that extend a run may differ from before.
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
    if resume:
        _require_run(out)
    else:
        settings = _checked(experiment, given)
        problem = experiment.build(settings)
        _require_folder(out)
    with RunFolder(out, "out"):
        if resume:
            settings = _checked(experiment, _stored(out, experiment, given))
            problem = experiment.build(settings)
        else:
            _claim(out)
        return _carry_out(name, settings, problem, out, say)


def _carry_out(name: str, settings: Settings, problem: Problem, out: Path, say: Say) -> dict[str, Any]:
    """The run itself, in a folder that is its own; run.json says how it stands, however it ends."""
    computation = problem.computation
    record = {
        "experiment": name,
        "status": "running",
        "settings": dataclasses.asdict(settings),
        **computation.configuration(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    _write_json(out / RUN, record)
    say(f"{name}: {computation.describe()}")
    start = time.perf_counter()
    try:
        result = computation.solve(out / CHECKPOINT, say)
        with reproducible(settings.seed):
            computation.save(result, out)
            problem.figure(result, out / "figure.png")
            metrics = problem.metrics(result)
        seconds = time.perf_counter() - start
        _write_json(out / RUN, {**record, "status": "finished", "seconds": seconds, "metrics": metrics})
    except KeyboardInterrupt:
        _write_json(out / RUN, {**record, "status": "interrupted"})
        raise Interrupted(f"gwf-fast run {name} --out {out} --resume") from None
    except Exception as error:
        with contextlib.suppress(OSError):  # it may be the disk that is full
            _write_json(out / RUN, {**record, "status": "failed", "error": " ".join(str(error).split())})
        raise
    return metrics


def artefacts(out: Path) -> list[str]:
    """What a run has left in its folder, beside its checkpoints and what the writer of a folder keeps there itself."""
    return sorted(
        path.name + "/" * path.is_dir()
        for path in out.iterdir()
        if path.name != CHECKPOINT and not path.name.startswith(".")
    )


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {}
    for package in _RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _checked(experiment: Experiment, given: dict[str, Any]) -> Settings:
    """The given settings over the defaults; one that does not apply is an error, not silently dropped."""
    options, types = experiment.options(), experiment.types()
    for name in given:
        if name not in options:
            raise ValueError(f"{name}: the experiment {experiment.name!r} has no such option")
    settings = dataclasses.replace(experiment.defaults, **given)
    for name, field in options.items():
        value, choices = getattr(settings, name), field.metadata["choices"]
        if value is None:
            continue
        least = field.metadata["least"]
        if types[name] in (int, int | None) and name != "seed" and value < least:
            expected = "a positive integer" if least == 1 else f"an integer >= {least}"
            raise ValueError(f"{name} must be {expected}, got {value}")
        if choices and value not in choices:
            close = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")
    return settings


def _stored(out: Path, experiment: Experiment, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run in the folder, those that extend it replaced."""
    path = out / RUN
    try:
        record = json.loads(path.read_text())
        settings, stored_name = dict(record["settings"]), record["experiment"]
    except FileNotFoundError:
        raise ValueError(f"resume: {out} holds no run ({RUN} is missing)") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"resume: {path} is not the record of a run") from None
    if stored_name != experiment.name:
        raise ValueError(f"resume: {out} holds a run of {stored_name!r}, not of {experiment.name!r}")
    options = experiment.options()
    if unknown := settings.keys() - options.keys():
        raise ValueError(f"resume: {path} has settings that this version doesn't know: {', '.join(sorted(unknown))}")
    extending = [name for name, field in options.items() if field.metadata["extends"]]
    changed = [key for key, value in given.items() if key not in extending and value != settings.get(key)]
    if changed:
        can = ", ".join(map(spelled, extending)) or "none"
        raise ValueError(f"resume: {', '.join(changed)} can't change in a run that has begun; only {can} can")
    return {**settings, **given}


def _require_run(out: Path) -> None:
    if not (out / RUN).is_file():
        raise ValueError(f"resume: {out} holds no run ({RUN} is missing)")


def _require_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file, expected a folder")


def _claim(out: Path) -> None:
    """Refuse a folder that holds anything but what a run leaves that was killed before it wrote its first file."""
    if (out / RUN).exists():
        raise ValueError(f"out: {out} holds another run; choose another folder, or go on with --resume")
    if artefacts(out):
        raise ValueError(f"out: {out} is not empty; choose another folder")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode())
