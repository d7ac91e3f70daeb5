"""Parametric drifting (Deng et al. 2026): a one-step generator that is trained towards the fixed point of a flow."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gwf_fast import drift as drifts
from gwf_fast.checkpoint.optimizer_state import restore_optimizer
from gwf_fast.checkpoint.run_folder import RunFolder
from gwf_fast.drift.learned import LearnedCritic, is_stateful
from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.drifting_checkpoint import Keeper, load
from gwf_fast.flows.drifting_loop import DriftingLoop, cosine
from gwf_fast.flows.drifting_state import Drift, DriftingRecord, DriftingResult, DriftingState
from gwf_fast.flows.progress import progress as shown_progress
from gwf_fast.flows.training import SCHEDULES
from gwf_fast.functionals.samples import Target, check_target, draw_target
from gwf_fast.nn import MLP
from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import as_integer
from gwf_fast.randomness.seeded import asked, redirected, seeded

KINDS = ("gmd", "gmd_multi", "parzen_kl", "f_divergence", "mmd", "energy", "sinkhorn", "sliced_wasserstein", "critic")
_SECONDS = 10.0  # between two checkpoints; a killed process loses no more than this
_HIDDEN = (256, 256, 256)


class DriftingModel:
    """Trains G so that V(G(z)) = 0: each update is Adam on |x - stopgrad(x + V(x))|^2, x = G(z) with fresh noise z.

    V is divided by the root of its mean square, as in the authors' released code, and Adam is blind to a factor anyway:
    ``lr`` is the step size of every drift. (Without it, a drift from afar, e^(-r/T), drowns in the epsilon of Adam.)

    Args:
        drift: A name in ``gwf_fast.drift`` ("gmd", "parzen_kl", "mmd", "sinkhorn", ..., or "critic" for a
            ``LearnedCritic``), or a function (x [N, D], y [M, D]) -> V [N, D]. One that learns as it goes has
            ``state_dict`` and ``load_state_dict`` of tensors, which checkpoints then hold.
        dim: D.
        options: Keyword arguments of a drift given by name: ``{"temperature": 0.05}``.
        generator: G, a module [N, L] -> [N, D]; it is copied. None for an ``nn.MLP`` with three hidden layers of 256.
        latent_dim: L; z ~ N(0, I).
        batch_size: N, samples generated an update.
        n_targets: M, samples of the target an update; None for N.
        lr: Learning rate of Adam.
        lr_schedule: "constant", or "cosine" down to zero at the end of the run.
        betas: Adam's decay rates.
        ema: Decay of a moving average of the parameters, which becomes the generator of the result, with the buffers
            of the last update; None for none.
        record_every: Updates between two records.
        seed: Of everything random; torch's global generator is left as it was.

    Raises:
        ValueError, TypeError: If a drift, an option or a schedule is unknown, or a number out of range.
    """

    def __init__(
        self,
        drift: str | Drift,
        dim: int,
        *,
        options: Mapping[str, Any] | None = None,
        generator: nn.Module | None = None,
        latent_dim: int = 32,
        batch_size: int = 2048,
        n_targets: int | None = None,
        lr: float = 1e-3,
        lr_schedule: str = "constant",
        betas: tuple[float, float] = (0.9, 0.999),
        ema: float | None = None,
        record_every: int = 50,
        seed: int = 0,
    ) -> None:
        self.dim = as_integer("dim", dim)
        self.latent_dim = as_integer("latent_dim", latent_dim)
        self.batch_size = as_integer("batch_size", batch_size)
        self.n_targets = self.batch_size if n_targets is None else as_integer("n_targets", n_targets)
        self.record_every = as_integer("record_every", record_every)
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr: expected a positive number, got {lr!r}")
        if lr_schedule not in SCHEDULES:
            raise ValueError(f"lr_schedule: expected one of {', '.join(SCHEDULES)}, got {lr_schedule!r}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {betas!r}")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema: expected a number in (0, 1), got {ema!r}")
        if generator is not None and not isinstance(generator, nn.Module):
            raise TypeError(f"generator: expected a torch.nn.Module, got {type(generator).__name__}")
        self.drift = drift
        self.options = dict(options or {})
        self.generator = generator
        self.lr = float(lr)
        self.lr_schedule = lr_schedule
        self.betas = (float(betas[0]), float(betas[1]))
        self.ema = ema
        self.seed = int(seed)
        with seeded(self.seed, 0, torch.device("cpu")), redirected():
            function = self._new_drift()
            if drift in KINDS and drift != "critic":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function(*torch.randn(2, 4, dim))  # options out of range are told here, not in the first update

    @entry(differentiates=True)
    def init(self, like: Tensor) -> DriftingState:
        """The state before the first update, on the device and in the precision of ``like``."""
        with seeded(self.seed, 0, like.device):
            generator = asked(self._new_generator).to(like)
            drift = asked(self._new_drift)
        parameters = [p for p in generator.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=True)
        average = None if self.ema is None else copy.deepcopy(generator)
        return DriftingState(0, generator, optimizer, drift, average)

    def restore(self, state: DriftingState, values: Mapping[str, Any]) -> None:
        """Put what ``DriftingState.values`` gave into a new state.

        Raises:
            RuntimeError: If they do not fit the networks.
        """
        parts: dict[str, dict[str, Any]] = {"generator": {}, "optimizer": {}, "average": {}, "drift": {}}
        for name, value in values.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = value
        state.generator.load_state_dict(parts["generator"])
        restore_optimizer(state.optimizer, parts["optimizer"])
        if state.average is not None:
            state.average.load_state_dict(parts["average"])
        if is_stateful(state.drift):
            state.drift.load_state_dict(parts["drift"])  # type: ignore[attr-defined]

    @entry(differentiates=True)
    def step(self, state: DriftingState, target: Target, n_steps: int) -> None:
        """One update of ``state``, in place.

        Raises:
            NonFiniteError: If the drift or a gradient is NaN or infinite; the parameters are then as they were.
        """
        DriftingLoop(self, state, target, n_steps).run(1)

    def rate(self, update: int, n_steps: int) -> float:
        """The factor on the learning rate after some updates of a run."""
        return cosine(update, n_steps) if self.lr_schedule == "cosine" else 1.0

    @entry(differentiates=True)
    def run(
        self,
        target: Target,
        n_steps: int,
        *,
        progress: bool = True,
        checkpoint: str | Path | RunFolder | None = None,
        evaluate: Callable[[Tensor], float] | None = None,
        state: DriftingState | None = None,
    ) -> DriftingResult:
        """Train for ``n_steps`` updates.

        Args:
            target: Samples of the target [M, D], drawn from with replacement, or a callable n -> [n, D].
            n_steps: Updates in all, those already in ``state`` included.
            progress: Whether to show a progress bar.
            checkpoint: A folder that receives the state every ten seconds and when the run ends, however it ends.
            evaluate: Called at every record with ``batch_size`` fresh samples; its number goes into the record.
            state: Go on from here; it is changed.

        Raises:
            NonFiniteError: If training diverges; the last good state is in the checkpoint.
            FileExistsError: If the folder holds another run and ``state`` is None.
            BlockingIOError: If another run is writing to it.
        """
        n_steps = as_integer("n_steps", n_steps, least=0)
        check_target(target)
        state, is_new = self.init(_sample(target, self.dim)) if state is None else state, state is None
        with contextlib.ExitStack() as stack:
            folder = None if checkpoint is None else stack.enter_context(RunFolder.of(checkpoint))
            if folder is not None and is_new:
                folder.refuse_occupied()
            keeper = stack.enter_context(Keeper(folder, self, target, n_steps, _SECONDS))
            bar = stack.enter_context(shown_progress(n_steps, state.step, shown=progress, name="updates"))
            loop = DriftingLoop(self, state, target, n_steps)
            while state.step < n_steps:
                keeper.keep(state)
                before = state.step
                try:
                    to_record = self.record_every - before % self.record_every
                    loop.run(min(loop.most, to_record, n_steps - before))
                except NonFiniteError:
                    if state.step > before:
                        keeper.keep(state)
                    raise
                finally:
                    bar.update(state.step - before)
                if state.step % self.record_every == 0:
                    record = self._record(state, evaluate)
                    bar.set_postfix_str(
                        f"|V|^2 {record.drift:.3g}" + ("" if evaluate is None else f", {record.value:.3g}")
                    )
            keeper.keep(state)
        return self._result(state)

    @classmethod
    def resume(
        cls,
        checkpoint: str | Path,
        *,
        n_steps: int | None = None,
        progress: bool = True,
        target: Target | None = None,
        drift: Drift | None = None,
        generator: nn.Module | None = None,
        evaluate: Callable[[Tensor], float] | None = None,
    ) -> DriftingResult:
        """Go on from a checkpoint, bit for bit as if the run had not stopped, and keep writing to it.

        Args:
            checkpoint: The folder.
            n_steps: Updates in all; None for as many as the run was started with.
            progress: Whether to show a progress bar.
            target: As the run had it, where it was a callable.
            drift: As the run had it, where it was a function.
            generator: As the run had it, where it was not a ``gwf_fast.nn.MLP``.
            evaluate: As the run had it.

        Raises:
            ValueError: If something is missing, or the checkpoint can't be read.
        """
        given = {"target": target, "drift": drift, "generator": generator}
        with RunFolder.existing(checkpoint) as folder:
            model, state, planned, target = load(folder, given, cls)
            n_steps = planned if n_steps is None else n_steps
            return model.run(target, n_steps, progress=progress, checkpoint=folder, evaluate=evaluate, state=state)

    def _record(self, state: DriftingState, evaluate: Callable[[Tensor], float] | None) -> DriftingRecord:
        value = None
        if evaluate is not None:
            device = next(state.generator.parameters()).device
            with seeded(self.seed, f"{state.step}/evaluate", device):
                samples = self._result(state).sample(self.batch_size)
                value = float(asked(evaluate, samples))
        record = DriftingRecord(state.step, sum(state.pending) / len(state.pending), value, state.seconds)
        state.history.append(record)
        state.pending.clear()
        return record

    def _result(self, state: DriftingState) -> DriftingResult:
        generator = copy.deepcopy(state.generator if state.average is None else state.average).eval()
        return DriftingResult(generator, tuple(state.history), self.latent_dim, state.step)

    def _new_generator(self) -> nn.Module:
        if self.generator is not None:
            return copy.deepcopy(self.generator)
        return MLP([self.latent_dim, *_HIDDEN, self.dim], "relu")

    def _new_drift(self) -> Drift:
        """The drift as a function of x and y; one that learns is new."""
        if not isinstance(self.drift, str):
            if not callable(self.drift):
                raise TypeError(f"drift: expected a name or a callable, got {type(self.drift).__name__}")
            if self.options:
                raise ValueError("options: go with a drift given by name; a callable has its own")
            return copy.deepcopy(self.drift) if is_stateful(self.drift) else self.drift
        if self.drift not in KINDS:
            raise ValueError(f"drift: expected a callable or one of {', '.join(KINDS)}, got {self.drift!r}")
        options = copy.deepcopy(self.options)
        if self.drift == "critic":
            _check_options(LearnedCritic, self.drift, options, self.dim)
            return LearnedCritic(self.dim, **options)
        function = getattr(drifts, self.drift)
        _check_options(function, self.drift, options, None, None)
        return lambda x, y: function(x, y, **options)


def _check_options(function: Any, name: str, options: dict[str, Any], *positional: Any) -> None:
    try:
        inspect.signature(function).bind(*positional, **options)
    except TypeError as error:
        raise ValueError(f"options: do not fit the drift {name!r}: {error}") from None


def _sample(target: Target, dim: int) -> Tensor:
    """A sample that tells device and precision, and whether the target fits."""
    device = target.device if isinstance(target, Tensor) else torch.device("cpu")
    with seeded(0, 0, device):
        y = draw_target(target, 1)
    if y.ndim != 2 or y.shape[1] != dim:
        raise ValueError(f"target: expected samples [M, {dim}], got {list(y.shape)}")
    if not y.is_floating_point():
        raise TypeError(f"target: expected floating-point samples, got {y.dtype}")
    return y
