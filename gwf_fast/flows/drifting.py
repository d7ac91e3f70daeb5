"""Parametric drifting (Deng et al. 2026): a one-step generator that is trained towards the fixed point of a flow."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gwf_fast import drift as drifts
from gwf_fast.checkpoint.optimizer_state import restore_optimizer
from gwf_fast.checkpoint.run_folder import RunFolder
from gwf_fast.drift.learned import LearnedCritic, is_stateful
from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.drifting_checkpoint import Keeper, load, save
from gwf_fast.flows.drifting_loop import DriftingLoop
from gwf_fast.flows.drifting_state import Drift, DriftingRecord, DriftingResult, DriftingState, sampled
from gwf_fast.flows.progress import progress as shown_progress
from gwf_fast.flows.training import OptimizerChoice, Schedule, checked_optimization, factor, new_optimizer
from gwf_fast.functionals.evaluation import Target, check_target, draw_target
from gwf_fast.nn import MLP
from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import as_integer
from gwf_fast.randomness.seeded import asked, redirected, seeded


def _is_drift(function: Any) -> bool:
    return list(inspect.signature(function).parameters)[:2] == ["x", "y"]


KINDS = (*(name for name in drifts.__all__ if _is_drift(getattr(drifts, name))), "critic")
"""What ``gwf_fast.drift`` exports of x and y, and a critic that learns."""

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
        lr_schedule: "constant", or "cosine" down to zero at the end of the run, or a function (update from 0, updates)
            -> factor on the rate.
        optimizer: None for Adam; the name of a class of ``torch.optim``, or a function (parameters, lr=) -> optimiser.
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
        lr_schedule: Schedule = "constant",
        optimizer: OptimizerChoice = None,
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
        lr, betas, ema = checked_optimization(lr, lr_schedule, betas, ema, optimizer)
        if generator is not None and not isinstance(generator, nn.Module):
            raise TypeError(f"generator must be a torch.nn.Module, got {type(generator).__name__}")
        self.drift = drift
        self.options = dict(options or {})
        self.generator = generator
        self.lr = lr
        self.lr_schedule = lr_schedule
        self.optimizer = optimizer
        self.betas = betas
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
        average = None if self.ema is None else copy.deepcopy(generator)
        return DriftingState(0, generator, self._new_optimizer(generator), drift, average)

    def _new_optimizer(self, generator: nn.Module, carried: dict[str, Any] | None = None) -> torch.optim.Optimizer:
        parameters = [p for p in generator.parameters() if p.requires_grad]
        return new_optimizer(self.optimizer, parameters, lr=self.lr, betas=self.betas, carried=carried)

    def _copied(self, state: DriftingState) -> DriftingState:
        """The same state, of which nothing is shared."""
        generator, average = copy.deepcopy((state.generator, state.average))
        drift = state.drift
        if is_stateful(drift):
            with seeded(self.seed, 0, next(generator.parameters()).device):
                drift = asked(self._new_drift)
            drift.load_state_dict(copy.deepcopy(state.drift.state_dict()))  # type: ignore[attr-defined]
        return replace(
            state,
            generator=generator,
            optimizer=self._new_optimizer(generator, state.optimizer.state_dict()),
            drift=drift,
            average=average,
            history=list(state.history),
            pending=list(state.pending),
        )

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
    def step(self, state: DriftingState, target: Target, n_steps: int) -> DriftingState:
        """The state after one more update. ``state`` stays as it was, whatever happens.

        Args:
            state: Where to start.
            target: Samples of the target, as in :meth:`run`.
            n_steps: Updates of the run, by which the rate is scheduled.

        Raises:
            NonFiniteError: If the drift or a gradient is NaN or infinite.
        """
        state = self._copied(state)
        DriftingLoop(self, state, target, n_steps).run(1)
        return state

    def rate(self, update: int, n_steps: int) -> float:
        """The factor on the learning rate after some updates of a run."""
        return factor(self.lr_schedule, update, n_steps)

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
        callbacks: Sequence[Callable[[DriftingState], object]] = (),
    ) -> DriftingResult:
        """Train for ``n_steps`` updates.

        Args:
            target: Samples of the target [M, D], drawn from with replacement, or a callable n -> [n, D].
            n_steps: Updates in all, those already in ``state`` included.
            progress: Whether to show a progress bar.
            checkpoint: A folder that receives the state every ten seconds and when the run ends, however it ends.
            evaluate: Called at every record with ``batch_size`` fresh samples; its number goes into the record.
            state: Go on from here; it stays as it was.
            callbacks: Called with a copy of the state at every record, after it; the run ends where one returns True.

        Raises:
            NonFiniteError: If training diverges; the last good state is in the checkpoint.
            FileExistsError: If the folder holds another run and ``state`` is None.
            BlockingIOError: If another run is writing to it.
        """
        n_steps = as_integer("n_steps", n_steps, least=0)
        check_target(target)
        state, is_new = self.init(_sample(target, self.dim)) if state is None else self._copied(state), state is None
        with contextlib.ExitStack() as stack:
            folder = None if checkpoint is None else stack.enter_context(RunFolder.of(checkpoint))
            if folder is not None and is_new:
                folder.refuse_occupied()
            keeper = stack.enter_context(Keeper(folder, self, target, n_steps, _SECONDS))
            bar = stack.enter_context(shown_progress(n_steps, state.step, shown=progress, name="updates"))
            loop = DriftingLoop(self, state, target, n_steps)
            ends = False
            while state.step < n_steps and not ends:
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
                    ends = True in [callback(self._copied(state)) is True for callback in callbacks]
            keeper.keep(state)
        return self._result(state, target)

    def save(self, state: DriftingState, folder: str | Path, target: Target) -> None:
        """Write a checkpoint of a state; FileExistsError if the folder holds another run."""
        save(folder, self, state, state.step, target)

    @classmethod
    def load(cls, checkpoint: str | Path, **given: Any) -> DriftingResult:
        """The result that a checkpoint holds; what it could not hold is given as to :meth:`resume`."""
        model, state, _, target = load(RunFolder.existing(checkpoint), given, cls)
        return model._result(state, target)

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
        lr_schedule: Schedule | None = None,
        optimizer: OptimizerChoice = None,
        callbacks: Sequence[Callable[[DriftingState], object]] = (),
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
            lr_schedule: As the run had it, where it was a function.
            optimizer: The same.
            callbacks: As in :meth:`run`.

        Raises:
            ValueError: If something is missing, or the checkpoint can't be read.
        """
        given: dict[str, Any] = {"target": target, "drift": drift, "generator": generator}
        given |= {"lr_schedule": lr_schedule, "optimizer": optimizer}
        with RunFolder.existing(checkpoint) as folder:
            model, state, planned, target = load(folder, given, cls)
            n_steps = planned if n_steps is None else n_steps
            options: dict[str, Any] = {"progress": progress, "checkpoint": folder, "callbacks": callbacks}
            return model.run(target, n_steps, evaluate=evaluate, state=state, **options)

    def _record(self, state: DriftingState, evaluate: Callable[[Tensor], float] | None) -> DriftingRecord:
        value = None
        if evaluate is not None:
            device = next(state.generator.parameters()).device
            with seeded(self.seed, f"{state.step}/evaluate", device):
                samples = sampled(self._generator(state), self.latent_dim, self.batch_size)
                value = float(asked(evaluate, samples))
        record = DriftingRecord(state.step, sum(state.pending) / len(state.pending), value, state.seconds)
        state.history.append(record)
        state.pending.clear()
        return record

    def _generator(self, state: DriftingState) -> nn.Module:
        return copy.deepcopy(state.generator if state.average is None else state.average).eval()

    def _result(self, state: DriftingState, target: Target) -> DriftingResult:
        history = tuple(state.history)
        return DriftingResult(self._generator(state), history, self.latent_dim, state.step, state, self, target)

    def _new_generator(self) -> nn.Module:
        if self.generator is not None:
            return copy.deepcopy(self.generator)
        return MLP([self.latent_dim, *_HIDDEN, self.dim], "relu")

    def _new_drift(self) -> Drift:
        """The drift as a function of x and y; one that learns is new."""
        if not isinstance(self.drift, str):
            if not callable(self.drift):
                raise TypeError(f"drift must be a name or a callable, got {type(self.drift).__name__}")
            if self.options:
                raise ValueError("options: go with a drift given by name; a callable has its own")
            return copy.deepcopy(self.drift) if is_stateful(self.drift) else self.drift
        if self.drift not in KINDS:
            raise ValueError(f"drift must be a callable or one of {', '.join(KINDS)}, got {self.drift!r}")
        options = copy.deepcopy(self.options)
        if self.drift == "critic":
            _check_options(LearnedCritic, self.drift, options, self.dim)
            return LearnedCritic(self.dim, **options)
        function = getattr(drifts, self.drift)
        if self.drift == "sliced_wasserstein" and "directions" not in options:
            options.setdefault("sampling", "normal")  # as in version 0.1, whose runs go on; and graphs hold such draws
        _check_options(function, self.drift, options, None, None)
        return lambda x, y: function(x, y, **options)


def _check_options(function: Any, name: str, options: dict[str, Any], *positional: Any) -> None:
    former = getattr(function, "former_names", ())  # they warn, and go on
    try:
        inspect.signature(function).bind(*positional, **{key: options[key] for key in options if key not in former})
    except TypeError as error:
        raise ValueError(f"options: do not fit the drift {name!r}: {error}") from None


def _sample(target: Target, dim: int) -> Tensor:
    """A sample that tells device and precision, and whether the target fits."""
    device = target.device if isinstance(target, Tensor) else torch.device("cpu")
    with seeded(0, 0, device):
        y = draw_target(target, 1)
    if y.ndim != 2 or y.shape[1] != dim:
        raise ValueError(f"target must be samples [M, {dim}], got {list(y.shape)}")
    if not y.is_floating_point():
        raise TypeError(f"target must be floating-point samples, got {y.dtype}")
    return y
