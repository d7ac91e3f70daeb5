"""A one-step generator trained along a drift (Deng et al., 2026), or along all of them, side by side.

``--compare`` draws what the note "On the Wasserstein Gradient Flow Interpretation of Drifting Models" shows: true and
generated samples for each drift and each of its parameters, and the MMD against training time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gwf_fast.checkpoint import run_folder
from gwf_fast.drift.critics import TRANSFORMS
from gwf_fast.errors import NonFiniteError
from gwf_fast.experiments import base, drift_data, drift_figures
from gwf_fast.experiments.computation import Say, Study, save_history, save_modules, save_samples
from gwf_fast.flows.drifting import DriftingModel
from gwf_fast.flows.drifting_state import DriftingRecord, DriftingResult
from gwf_fast.nn import MLP
from gwf_fast.pairs.kernels import Gaussian
from gwf_fast.randomness.seeded import redirected, seeded

# What each drift may be told, and the settings that --compare tries.
_SWEEP: dict[str, tuple[str, tuple[Any, ...]]] = {
    "gmd": ("bandwidth", (0.05, 0.15, 0.5, 1.5)),
    "parzen_kl": ("bandwidth", (0.05, 0.15, 0.5, 1.5)),
    "sinkhorn": ("bandwidth", (0.05, 0.15, 0.5, 1.5)),
    "mmd": ("bandwidth", (0.05, 0.15, 0.5, 1.5)),
    "sliced_wasserstein": ("projections", (1, 4, 16, 64)),
    "energy": ("exponent", (0.5, 1.0, 1.5, 1.9)),
    "critic": ("transform", ("wgan", "kl", "js", "log_sigmoid")),
}
_DEFAULT = {
    "gmd": 0.15,
    "parzen_kl": 0.15,
    "sinkhorn": 0.15,
    "mmd": 0.5,
    "sliced_wasserstein": 16,
    "energy": 1.0,
    "critic": "wgan",
}
_OPTIONS = ("bandwidth", "projections", "exponent", "transform")


@dataclass(frozen=True, kw_only=True)
class _Settings(base.Settings):
    kind: str | None = base.option("the drift, default gmd", None, choices=tuple(_SWEEP))
    data: str = base.option("what to learn", "8gaussians", choices=drift_data.DATA)
    compare: bool = base.option("all drifts, each with four settings, in one figure", False)
    steps: int | None = base.option("updates of the generator, default 2000; 1500 with --compare", None, extends=True)
    batch_size: int | None = base.option("samples an update, default 2048; 512 with --compare", None, least=2)
    latent_dim: int | None = base.option("of the noise, default 32; 2 for the plane with --compare", None)
    lr: float | None = base.option("rate of Adam, cosine schedule; default 5e-3, of critic 1e-3", None)
    bandwidth: float | None = base.option("T of gmd, bandwidth of parzen_kl and mmd, root of sinkhorn's epsilon", None)
    projections: int | None = base.option("directions of sliced_wasserstein", None)
    exponent: float | None = base.option("of the distances of energy, 0 < e < 2", None)
    transform: str | None = base.option("of critic", None, choices=TRANSFORMS)
    input: str = base.option("folder with MNIST's IDX files, for --data mnist", "")


@dataclass(frozen=True)
class Drifting:
    """One run of a ``DriftingModel``; a computation. Its result is None where training diverged and may.

    Attributes:
        model: What to train.
        data: The target, and what judges.
        steps: Updates.
        may_diverge: Whether that is a result, or an error.
    """

    model: DriftingModel
    data: drift_data.Data
    steps: int
    may_diverge: bool = False

    def describe(self) -> str:
        """See ``Computation``."""
        model = self.model
        return f"D = {model.dim}, {self.steps} updates on {model.batch_size} samples, seed {model.seed}"

    def configuration(self) -> dict[str, Any]:
        """See ``Computation``."""
        options = {
            name: value if isinstance(value, (int, float)) else str(value) for name, value in self.model.options.items()
        }
        return {"drift": self.model.drift, "options": options, "lr": self.model.lr, "updates": self.steps}

    def solve(self, folder: Path, say: Say) -> DriftingResult | None:
        """See ``Computation``."""
        evaluate, target = self.data.mmd, self.data.sample
        try:
            if (folder / run_folder.MANIFEST).exists():
                return DriftingModel.resume(folder, n_steps=self.steps, target=target, evaluate=evaluate)
            return self.model.run(target, self.steps, checkpoint=folder, evaluate=evaluate)
        except NonFiniteError as error:
            if not self.may_diverge:
                raise
            say(f"diverged: {error}")
            return None

    def save(self, result: DriftingResult | None, out: Path) -> None:
        """Samples, generator and history."""
        if result is None:
            return
        save_samples(self.data.decode(result.sample(len(self.data.truth))), out)
        save_modules({"generator": result.generator}, out / "generator.safetensors")
        save_history(DriftingRecord, result.history, out)


def build(settings: _Settings) -> base.Problem:
    """One drift, or all."""
    return _comparison(settings) if settings.compare else _single(settings)


def _single(settings: _Settings) -> base.Problem:
    kind = settings.kind or "gmd"
    own = _SWEEP[kind][0]
    for name in _OPTIONS:
        if name != own and getattr(settings, name) is not None:
            raise ValueError(f"{name}: the drift {kind!r} has no such option; it has --{own}")
    value = getattr(settings, own)
    data = drift_data.load(settings.data, settings.input, settings.seed)
    drifting = _drifting(settings, data, kind, _scaled(kind, _DEFAULT[kind], data) if value is None else value)

    def metrics(result: DriftingResult) -> dict[str, Any]:
        return {**data.metrics(result.sample(len(data.truth))), "of_true_samples": data.metrics(data.held)}

    def figure(result: DriftingResult, path: Path) -> None:
        drift_figures.single(kind, data, result, path)

    return base.Problem(drifting, figure, metrics)


def _comparison(settings: _Settings) -> base.Problem:
    for name in ("kind", *_OPTIONS):
        if getattr(settings, name) is not None:
            raise ValueError(f"{name}: does not go with --compare, which tries them all")
    data = drift_data.load(settings.data, settings.input, settings.seed)
    members = {
        f"{kind}-{value}": _drifting(settings, data, kind, _scaled(kind, value, data), may_diverge=True)
        for kind, (_, values) in _SWEEP.items()
        for value in values
    }

    def metrics(results: dict[str, DriftingResult | None]) -> dict[str, Any]:
        judged = {name: r and data.metrics(r.sample(len(data.truth))) for name, r in results.items()}
        return {**judged, "true samples": data.metrics(data.held)}

    def figure(results: dict[str, DriftingResult | None], path: Path) -> None:
        rows = {
            kind: (name, {value: results[f"{kind}-{value}"] for value in values})
            for kind, (name, values) in _SWEEP.items()
        }
        drift_figures.comparison(settings.data, data, rows, path)

    return base.Problem(Study(members), figure, metrics)


def _scaled(kind: str, value: Any, data: drift_data.Data) -> Any:
    """A bandwidth for the plane in D dimensions, where distances are longer."""
    return value * math.sqrt(data.dim / 2) if _SWEEP[kind][0] == "bandwidth" else value


def _drifting(settings: _Settings, data: drift_data.Data, kind: str, value: Any, may_diverge: bool = False) -> Drifting:
    steps, batch_size, latent_dim = (1500, 512, 2 if data.dim == 2 else 32) if settings.compare else (2000, 2048, 32)
    steps = settings.steps or steps
    latent_dim = settings.latent_dim or latent_dim
    # WGAN's chase settles with a smooth generator; the others come nearer with a piecewise linear one
    with seeded(settings.seed, "generator", torch.device("cpu")), redirected():
        generator = MLP([latent_dim, 256, 256, 256, data.dim], "silu" if kind == "critic" else "relu")
    model = DriftingModel(
        kind,
        data.dim,
        options=_options(kind, value),
        batch_size=settings.batch_size or batch_size,
        generator=generator,
        latent_dim=latent_dim,
        lr=(1e-3 if kind == "critic" else 5e-3) if settings.lr is None else settings.lr,  # a critic must keep up
        lr_schedule="cosine",
        ema=0.99,
        record_every=max(1, min(50, steps // 20)),
        seed=settings.seed,
    )
    return Drifting(model, data, steps, may_diverge)


def _options(kind: str, value: Any) -> dict[str, Any]:
    match kind:
        case "gmd":
            return {"temperature": value}
        case "parzen_kl":
            return {"bandwidth": value}
        case "sinkhorn":  # the drift needs no more accuracy than a minibatch has
            return {"epsilon": value**2, "tolerance": 1e-2, "max_iterations": 500, "scaling": 0.7}
        case "mmd":
            return {"kernel": Gaussian(value)}
        case "sliced_wasserstein":
            return {"n_projections": value}
        case "energy":
            return {"exponent": value}
    return {"transform": value, "lr": 2e-3}


EXPERIMENT = base.Experiment(
    "drift", "a one-step generator trained along a drift (--kind), or along all of them (--compare)", _Settings(), build
)
