"""Checkpoints of a ``DriftingModel``: ``checkpoint.json`` and safetensors files, as ``run_folder.py`` keeps them."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gwf_fast.checkpoint.portable import NotPortableError, pack, unpack
from gwf_fast.checkpoint.run_folder import RunFolder, read_manifest, read_values, told_in_one_line, verify
from gwf_fast.flows.drifting_state import DriftingRecord, DriftingState
from gwf_fast.flows.jko_checkpoint import given_or_stored, packed_or_named
from gwf_fast.functionals.samples import Target
from gwf_fast.version import __version__

if TYPE_CHECKING:
    from gwf_fast.flows.drifting import DriftingModel

KIND = "drifting"
FORMAT = 1
_PARTS = ("drift", "generator", "target")
_NUMBERS = (
    "dim", "latent_dim", "batch_size", "n_targets", "lr", "lr_schedule", "betas", "ema", "record_every", "seed",
)  # fmt: skip


class Keeper:
    """Keeps a copy of the last good state, and writes it from time to time and when it is left, however that is.

    Args:
        folder: Where to; None to do nothing.
        model: What is being trained.
        target: Samples of the target; stored if they are a tensor.
        n_steps: Updates the run was started for.
        seconds: Between two writes.
    """

    def __init__(
        self, folder: RunFolder | None, model: DriftingModel, target: Target, n_steps: int, seconds: float
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._written = -torch.inf  # when
        self._kept: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._fixed: dict[str, Tensor] = {}
        if folder is not None:
            self._head = {
                "format": FORMAT,
                "kind": KIND,
                "n_steps": n_steps,
                "model": _configuration(model, target, self._fixed),
                "torch": torch.__version__,
                "gwf_fast": __version__,
            }

    def keep(self, state: DriftingState) -> None:
        """Remember a state that is good, and write it if it is time."""
        if self._folder is None:
            return
        values = {
            name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in state.values().items()
        }
        self._kept = (
            values,
            {
                "step": state.step,
                "seconds": state.seconds,
                "pending": list(state.pending),
                "history": list(state.history),
            },
        )
        if time.monotonic() - self._written > self._seconds:
            self._write()

    def _write(self) -> None:
        if self._folder is None or self._kept is None:
            return
        values, progress = self._kept
        files = {
            "fixed": self._folder.put("problem", lambda: self._fixed, owner=self),
            "moving": self._folder.put(f"state-{progress['step']:07d}", lambda: values),
        }
        history = [dataclasses.asdict(record) for record in progress["history"]]
        self._folder.commit({**self._head, **progress, "history": history, "files": files})
        self._written = time.monotonic()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()


def load(
    folder: RunFolder, given: Mapping[str, Any], model_class: type[DriftingModel]
) -> tuple[DriftingModel, DriftingState, int, Target]:
    """Read a checkpoint: the model, its state, the updates it was started for, and the target.

    Args:
        folder: Where a run wrote.
        given: What the checkpoint could not hold, by name: drift, generator, target; None where it could.
        model_class: The class to make.

    Raises:
        ValueError: If there is no checkpoint, it can't be read, or something is missing.
    """
    manifest = read_manifest(folder.path)
    if (manifest.get("kind"), manifest.get("format")) != (KIND, FORMAT):
        raise ValueError(f"checkpoint: {folder.path} is not that of a DriftingModel of format {FORMAT}")
    verify(manifest, folder.path)
    with told_in_one_line(folder.path):
        fixed = read_values(folder.path / manifest["files"]["fixed"])
        config = dict(manifest["model"])
        config["options"] = {name: unpack(value, fixed) for name, value in config["options"].items()}
        for part in _PARTS:
            config[part] = given_or_stored(part, given.get(part), config[part], fixed)
        target = config.pop("target")
        leading = config.pop("drift"), config.pop("dim")
    model = model_class(*leading, **config)
    with told_in_one_line(folder.path):
        return model, _state(folder, manifest, model), manifest["n_steps"], target


def _state(folder: RunFolder, manifest: dict[str, Any], model: DriftingModel) -> DriftingState:
    path = folder.path / manifest["files"]["moving"]
    moving = read_values(path)
    ours = (value for name, value in moving.items() if name.startswith("generator.") and isinstance(value, Tensor))
    state = model.init(next(tensor for tensor in ours if tensor.is_floating_point()))  # a counter says no precision
    try:
        model.restore(state, moving)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"checkpoint: {path} does not fit the networks ({reason})") from None
    state.step, state.seconds, state.pending = manifest["step"], manifest["seconds"], manifest["pending"]
    state.history = [DriftingRecord(**record) for record in manifest["history"]]
    return state


def _configuration(model: DriftingModel, target: Target, fixed: dict[str, Tensor]) -> dict[str, Any]:
    config: dict[str, Any] = {name: getattr(model, name) for name in _NUMBERS}
    config["options"] = {}
    try:
        config["options"] = {name: pack(value, fixed, f"options.{name}") for name, value in model.options.items()}
    except NotPortableError as reason:
        raise ValueError(f"checkpoint: {reason}; give the drift as a function instead") from None
    for name, value in (("drift", model.drift), ("generator", model.generator), ("target", target)):
        config[name] = packed_or_named(value, fixed, name)
    return config
