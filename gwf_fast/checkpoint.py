"""Checkpoints of a flow: a folder of safetensors files and a ``checkpoint.json`` that says which belong together.

Each file is written under a temporary name in the same folder, flushed to the disk and renamed; ``checkpoint.json``
comes last, the files it no longer names are removed after it. So whenever the process is killed the folder holds a
complete checkpoint, of this step or of the one before. Nothing is pickled: reading a checkpoint can't run code.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from gwf_fast.functional import Functional
from gwf_fast.jko import JKOFlow
from gwf_fast.portable import NotPortableError, pack, unpack
from gwf_fast.state import FlowState, Source, StepRecord

MANIFEST = "checkpoint.json"
FORMAT = 1
_PARTS = ("functional", "map", "critic")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must reach the disk
    finally:
        os.close(folder)


def refuse_occupied(folder: str | Path) -> None:
    """Raise FileExistsError if a checkpoint is in the folder already."""
    if (Path(folder) / MANIFEST).exists():
        raise FileExistsError(f"checkpoint: {folder} holds another run; choose another folder, or resume it")


def save(folder: str | Path, flow: JKOFlow, state: FlowState, n_steps: int, source: Source) -> None:
    """Write the state of a flow.

    Args:
        folder: Made if it isn't there.
        flow: Its configuration is stored as far as it is data: functions and modules of the user's own are named only.
        state: What to write. Maps that are in the folder already are not written again.
        n_steps: Steps the run was started for.
        source: P_0; stored if it is a tensor.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fixed: dict[str, Tensor] = {}
    config = {
        "dim": flow.dim,
        "step_size": flow.step_size,
        "scheme": flow.scheme,
        "parametrization": flow.parametrization,
        "seed": flow.seed,
        "engine": flow.engine,
        "latent_dim": flow.latent_dim,
        "training": pack(flow.training, fixed, "training"),
    }
    for part in _PARTS:
        try:
            config[part] = pack(getattr(flow, part), fixed, part)
        except NotPortableError as reason:
            config[part] = {"missing": str(reason)}
    if isinstance(source, Tensor):
        config["x0"] = pack(source, fixed, "x0")
    else:
        config["x0"] = {"missing": "x0 (a callable) can't be stored"}

    moving: dict[str, Tensor] = {"particles": state.particles.contiguous()}
    if state.latents is not None:
        moving["latents"] = state.latents.contiguous()
    if state.critic is not None:
        moving |= flat(state.critic.state_dict(), "critic")
    optimizers = {}
    for name in ("map_optimizer", "critic_optimizer"):
        optimizer = getattr(state, name)
        if optimizer is not None:
            groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer["param_groups"]]
            optimizers[name] = {"param_groups": groups, "params": [g["params"] for g in optimizer["param_groups"]]}
            for index, slots in optimizer["state"].items():
                moving |= flat(slots, f"{name}.{index}")

    files = {"fixed": "problem.safetensors", "moving": f"state-{state.step:05d}.safetensors"}
    first = state.step + 1 - len(state.maps)  # a generator keeps its last network only
    maps = [f"map-{k:05d}.safetensors" for k in range(first, state.step + 1)]
    is_new = not (folder / MANIFEST).exists()  # what else is there was left by a run that was killed at once
    if is_new or not (folder / files["fixed"]).exists():
        write_atomically(folder / files["fixed"], save_tensors(fixed))
    for name, transport in zip(maps, state.maps, strict=True):
        if is_new or not (folder / name).exists():
            write_atomically(folder / name, save_tensors(flat(transport.state_dict())))
    write_atomically(folder / files["moving"], save_tensors(moving))
    manifest = {
        "format": FORMAT,
        "step": state.step,
        "n_steps": n_steps,
        "flow": config,
        "files": {**files, "maps": maps},
        "optimizers": optimizers,
        "history": [dataclasses.asdict(record) for record in state.history],
        "torch": torch.__version__,
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    for pattern, current in (("state-*.safetensors", [files["moving"]]), ("map-*.safetensors", maps)):
        for stale in folder.glob(pattern):
            if stale.name not in current:
                stale.unlink()


def load(
    folder: str | Path,
    *,
    functional: Functional | None = None,
    map: nn.Module | Callable[[], nn.Module] | None = None,
    critic: nn.Module | Callable[[], nn.Module] | None = None,
    x0: Source | None = None,
    flow_class: type[JKOFlow] = JKOFlow,
) -> tuple[JKOFlow, FlowState, int, Source]:
    """Read a checkpoint: the flow, its state, the number of steps it was started for, and P_0.

    Args:
        folder: Where :func:`save` wrote.
        functional: What the checkpoint could not hold; see :meth:`JKOFlow.resume`.
        map: The same.
        critic: The same.
        x0: The same.
        flow_class: The class to make.

    Raises:
        ValueError: If there is no checkpoint, it can't be read, or something is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"checkpoint: {folder} has format {manifest.get('format')!r}, expected {FORMAT}")
    config = dict(manifest["flow"])
    fixed = read_tensors(folder / manifest["files"]["fixed"])
    given = {"functional": functional, "map": map, "critic": critic, "x0": x0}
    for part, value in given.items():
        config[part] = given_or_stored(part, value, config[part], fixed)
    config["training"] = unpack(config["training"], fixed)
    source = config.pop("x0")
    flow = flow_class(config.pop("functional"), config.pop("dim"), config.pop("step_size"), **config)
    return flow, _state(folder, manifest, flow), manifest["n_steps"], source


def _state(folder: Path, manifest: dict[str, Any], flow: JKOFlow) -> FlowState:
    moving = read_tensors(folder / manifest["files"]["moving"])
    particles = moving["particles"]
    maps = []
    for name in manifest["files"]["maps"]:
        transport, _ = flow.blank_modules(particles)
        maps.append(load_into(transport, read_tensors(folder / name), folder / name))
    _, critic = flow.blank_modules(particles)
    if critic is not None:
        critic = load_into(critic, nested(moving, "critic"), folder)
    optimizers = {}
    for name, stored in manifest["optimizers"].items():
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in nested(moving, name).items():
            index, slot = key.split(".", 1)
            slots.setdefault(int(index), {})[slot] = tensor
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
        latents=moving.get("latents"),
        **optimizers,
    )


def flat(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Tensors under names of the form PREFIX.NAME, as safetensors takes them."""
    return {f"{prefix}.{k}" if prefix else k: v.detach().contiguous() for k, v in tensors.items()}


def nested(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under PREFIX, by the rest of their names."""
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` of a folder says.

    Raises:
        ValueError: If it isn't there, or not JSON.
    """
    try:
        return json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise ValueError(f"checkpoint: no {MANIFEST} in {folder}") from None
    except ValueError as error:
        raise ValueError(f"checkpoint: {folder / MANIFEST} is not JSON ({error})") from None


def given_or_stored(part: str, value: Any, stored: Any, fixed: dict[str, Tensor]) -> Any:
    """An argument of ``resume``, or where it is None what the checkpoint holds of it.

    Raises:
        ValueError: If that is nothing but a name.
    """
    if value is not None:
        return value
    if isinstance(stored, dict) and "missing" in stored:
        raise ValueError(f"checkpoint: {stored['missing']}; give resume() the argument {part}=")
    return unpack(stored, fixed)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: If it can't be read.
    """
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint: can't read {path} ({error})") from None


def load_into(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Fill a module with what was read from ``path``.

    Raises:
        ValueError: If the tensors do not fit it.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint: {path} does not fit the network ({str(error).splitlines()[-1].strip()})"
        ) from None
    return module
