"""Checkpoints of a flow: a folder of safetensors files and a ``checkpoint.json`` that says which belong together.

``run_folder.py`` has what makes them safe: one writer, atomic, checked, no pickle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gwf_fast.checkpoint import keeper
from gwf_fast.checkpoint.keeper import load_into, nested, under
from gwf_fast.checkpoint.optimizer_state import require_moments
from gwf_fast.checkpoint.portable import pack
from gwf_fast.checkpoint.run_folder import (
    MANIFEST,
    RunFolder,
    read_manifest,
    read_values,
    told_in_one_line,
    verify,
)
from gwf_fast.flows.state import FlowState, Source, StepRecord
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import Functional

if TYPE_CHECKING:
    from gwf_fast.flows.jko import JKOFlow

FORMAT = 1
_NUMBERS = ("dim", "step_size", "scheme", "parametrization", "seed", "engine", "latent_dim")
_PARTS = ("functional", "map", "critic", "training")
_OPTIMIZERS = ("map_optimizer", "critic_optimizer")


class Keeper(keeper.Keeper[FlowState]):
    """Writes the states of a flow.

    Args:
        folder: Where to; held. None to do nothing.
        flow: Its configuration is stored as far as it is data: functions and modules of the user's own are named only.
        n_steps: Steps the run was started for.
        source: P_0; stored if it is a tensor.
    """

    def __init__(self, folder: RunFolder | None, flow: JKOFlow, n_steps: int, source: Source) -> None:
        fixed: dict[str, Tensor] = {}
        config = {name: getattr(flow, name) for name in _NUMBERS}
        for part in _PARTS:
            config[part] = keeper.packed_or_named(getattr(flow, part), fixed, part)
        if isinstance(source, Tensor):
            config["x0"] = pack(source, fixed, "x0")
        else:
            config["x0"] = {"missing": "x0 (a callable) can't be stored"}
        super().__init__(folder, {"format": FORMAT, "n_steps": n_steps, "flow": config}, fixed, _snapshot)


def _snapshot(state: FlowState) -> keeper.Snapshot:
    moving: dict[str, Any] = {"particles": state.particles}
    if state.latents is not None:
        moving["latents"] = state.latents
    if state.critic is not None:
        moving |= under("critic", state.critic.state_dict())
    optimizers = {}
    for name in _OPTIMIZERS:
        optimizer = getattr(state, name)
        if optimizer is not None:
            groups = [{k: v for k, v in g.items() if _is_plain(v) and k != "params"} for g in optimizer["param_groups"]]
            optimizers[name] = {"param_groups": groups, "params": [g["params"] for g in optimizer["param_groups"]]}
            for index, slots in optimizer["state"].items():
                moving |= under(f"{name}.{index}", slots)
    first = state.step + 1 - len(state.maps)  # a generator keeps its last network only
    maps = [(f"map-{k:05d}", transport) for k, transport in enumerate(state.maps, first)]
    history = [dataclasses.asdict(record) for record in state.history]
    progress = {"step": state.step, "optimizers": optimizers, "history": history}
    return keeper.Snapshot(f"state-{state.step:05d}", moving, progress, {"maps": maps})


def _is_plain(value: Any) -> bool:
    """Whether JSON has it: settings of a user's optimiser may be anything."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def save(folder: str | Path, flow: JKOFlow, state: FlowState, n_steps: int, source: Source) -> None:
    """Write the state of a flow once; see :class:`Keeper`."""
    with RunFolder(folder) as held:
        held.refuse_occupied()
        Keeper(held, flow, n_steps, source).keep(state)


def load(
    folder: str | Path | RunFolder,
    flow_class: type[JKOFlow],
    *,
    functional: Functional | None = None,
    map: nn.Module | Callable[[], nn.Module] | None = None,
    critic: nn.Module | Callable[[], nn.Module] | None = None,
    x0: Source | None = None,
    training: Training | None = None,
) -> tuple[JKOFlow, FlowState, int, Source]:
    """Read a checkpoint: the flow, its state, the number of steps it was started for, and P_0.

    Args:
        folder: Where a run wrote.
        flow_class: The class to make.
        functional: What the checkpoint could not hold; see :meth:`JKOFlow.resume`.
        map: The same.
        critic: The same.
        x0: The same.
        training: The same.

    Raises:
        ValueError: If there is no checkpoint, it can't be read, or something is missing.
    """
    folder = RunFolder.of(folder)
    manifest = read_manifest(folder.path)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"checkpoint: {folder.path} has format {manifest.get('format')!r}, expected {FORMAT}")
    verify(manifest, folder.path)
    given = {"functional": functional, "map": map, "critic": critic, "x0": x0, "training": training}
    with told_in_one_line(folder.path):
        config = dict(manifest["flow"])
        fixed = read_values(folder.path / manifest["files"]["fixed"])
        for part, value in given.items():
            config[part] = keeper.given_or_stored(part, value, config[part], fixed)
        source = config.pop("x0")
        leading = config.pop("functional"), config.pop("dim"), config.pop("step_size")
    flow = flow_class(*leading, **config)
    with told_in_one_line(folder.path):
        return flow, _state(folder, manifest, flow), manifest["n_steps"], source


def _check_points(path: Path, name: str, points: Any, like: Tensor | None, dim: int) -> Tensor:
    """Points of a state: a floating tensor [N, D] of finite numbers, as many and of the precision of ``like``."""
    fits = isinstance(points, Tensor) and points.ndim == 2 and points.shape[1] == dim and points.is_floating_point()
    if fits and like is not None:
        fits = len(points) == len(like) and points.dtype == like.dtype
    if not fits or len(points) == 0 or not points.isfinite().all():
        got = f"{points.dtype} {list(points.shape)}" if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"checkpoint: {path}: {name} must be finite and [N, {dim}], got {got}")
    return points


def _check_moments(path: Path, name: str, slots: dict[int, dict[str, Any]], module: nn.Module | None) -> None:
    """Moments of what is trained of a module: nothing of an explicit step is."""
    try:
        require_moments(slots, [] if module is None else [p for p in module.parameters() if p.requires_grad])
    except ValueError as error:
        raise ValueError(f"checkpoint: {path}: {name}: {error}") from None


def _state(folder: RunFolder, manifest: dict[str, Any], flow: JKOFlow) -> FlowState:
    path = folder.path / manifest["files"]["moving"]
    moving = read_values(path)
    particles = _check_points(path, "particles", moving["particles"], None, flow.dim)
    latents = moving.get("latents")
    if latents is not None:
        _check_points(path, "latents", latents, particles, flow.latent_dim or flow.dim)
    maps = []
    for name in manifest["files"]["maps"]:
        transport, _ = flow.blank_modules(particles)
        maps.append(load_into(transport, read_values(folder.path / name), folder.path / name))
        folder.belongs(name, transport)
    _, critic = flow.blank_modules(particles)
    if critic is not None:
        critic = load_into(critic, nested(moving, "critic"), path)
    for name in _OPTIMIZERS:  # without its moments the run would go on, but not as if it had not stopped
        if name not in manifest["optimizers"] and nested(moving, name):
            raise ValueError(f"checkpoint: {path} has moments of {name}, which {folder.path / MANIFEST} does not name")
    optimizers = {}
    for name, stored in manifest["optimizers"].items():
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in nested(moving, name).items():
            index, slot = key.split(".", 1)
            slots.setdefault(int(index), {})[slot] = tensor
        trained = critic if name == "critic_optimizer" else maps[-1] if maps else None
        if flow.training.optimizer is None:  # who knows what another one keeps
            _check_moments(path, name, slots, trained)
        groups = [{**g, "params": p} for g, p in zip(stored["param_groups"], stored["params"], strict=True)]
        optimizers[name] = {"state": slots, "param_groups": groups}
    history = tuple(StepRecord(**record) for record in manifest["history"])
    return FlowState(
        manifest["step"],
        flow.seed,
        particles,
        tuple(maps),
        critic=critic,
        history=history,
        latents=latents,
        **optimizers,
    )
