"""The parametric JKO loop: P_{k+1} = argmin_P F(P) + W2^2(P, P_k) / (2a).

As a composition P_{k+1} = T_k # P_k, with a network T_k a step, or as a generator P_k = G_k # rho, with one network
that takes latent noise z ~ rho and stays close to its previous self: E |G_{k+1}(z) - G_k(z)|^2 stands for W2^2.

The state is explicit: :meth:`JKOFlow.init` makes one, :meth:`JKOFlow.step` turns one into the next without changing
it, :meth:`JKOFlow.run` loops, shows progress and writes checkpoints. Step k draws all its randomness from a generator
seeded by (seed, k), so a state needs no generator bytes, and a resumed run repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gwf_fast.checkpoint.keeper import require_storable
from gwf_fast.checkpoint.run_folder import RunFolder
from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.engines.base import Engine, StepProblem
from gwf_fast.flows.engines.choice import EngineName, explained, require_known, resolve
from gwf_fast.flows.engines.inner_loop import require_shape
from gwf_fast.flows.jko_checkpoint import Keeper, load, save
from gwf_fast.flows.networks import default_critic, default_map, make_module
from gwf_fast.flows.progress import inner_progress
from gwf_fast.flows.progress import progress as shown_progress
from gwf_fast.flows.schemes import PARAMETRIZATIONS, SCHEMES, ForwardStep, Parametrization, Scheme, fit_critic, split
from gwf_fast.flows.state import FlowResult, FlowState, Source, StepRecord, check_source, copied, push, require_finite
from gwf_fast.flows.training import Training, new_optimizer
from gwf_fast.functionals.base import Functional
from gwf_fast.functionals.evaluation import batch
from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import as_integer, as_number
from gwf_fast.randomness.seeded import asked, seeded

_VALUE_SAMPLES = 8192  # samples in the estimate of F(P) after a step


class JKOFlow:
    """A parametric Wasserstein gradient flow of a functional.

    Args:
        functional: F, of ``gwf_fast.functionals.base``.
        dim: D.
        step_size: a, the step of the flow in its own time; positive. ``math.inf`` leaves out the proximity to P_k: one
            step is then the GAN of the functional (see ``gwf_fast.presets``).
        scheme: How a step is taken: "jko", "forward_backward", "crank_nicolson" or "explicit"; see
            ``gwf_fast.flows.schemes``. An explicit step of a functional with a critic first fits the critic to P_k.
        parametrization: "composition": a map a step, samples pass through all of them. "generator": one network from
            latent noise, so that a sample is one evaluation; ``x0`` is then that noise, and W2 its upper bound by
            pairs with the same noise.
        map: The transport map: a module [M, D] -> [M, D] that serves as template, or a callable that makes one. Of a
            ``gwf_fast.nn.MLP`` without frozen or parametrised layers weights are drawn anew, others are copied. None
            for a residual MLP with widths after Fan et al. (2022), table 4. Of a generator, [M, latent_dim] -> [M, D].
        critic: The same for the critic [M, D] -> [M, 1]; its raw output, see ``gwf_fast.functionals.base``.
        training: Hyperparameters of the inner problem.
        seed: Seed of everything random in the flow; torch's global generator is left as it was.
        engine: What solves a step: "fused", a compiled loop for ``gwf_fast.nn.MLP`` networks and nearly all functionals
            on the CPU, those of f-divergences on CUDA; "torch", which takes everything; None for the first that can.
            Both draw the same minibatches.
        latent_dim: Dimension of a generator's noise; None for D.

    Raises:
        ValueError: If a scheme, parametrisation or engine is not available, or an argument is out of range.
    """

    def __init__(
        self,
        functional: Functional,
        dim: int,
        step_size: float,
        *,
        scheme: Scheme = "jko",
        parametrization: Parametrization = "composition",
        map: nn.Module | Callable[[], nn.Module] | None = None,
        critic: nn.Module | Callable[[], nn.Module] | None = None,
        training: Training | None = None,
        seed: int = 0,
        engine: EngineName | None = None,
        latent_dim: int | None = None,
    ) -> None:
        if not isinstance(functional, Functional):
            raise TypeError(f"functional must be a functional of gwf_fast, got {type(functional).__name__}")
        dim = as_integer("dim", dim)
        latent_dim = None if latent_dim is None else as_integer("latent_dim", latent_dim)
        latent = dim if latent_dim is None else latent_dim
        if training is not None and not isinstance(training, Training):
            raise TypeError(f"training must be a gwf_fast.Training, got {type(training).__name__}")
        if step_size != math.inf:
            step_size = as_number("step_size", step_size, "a positive number or math.inf", above=0)
        choices = (("scheme", scheme, SCHEMES), ("parametrization", parametrization, PARAMETRIZATIONS))
        for name, value, known in choices:
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        is_generator = parametrization == "generator"
        if latent_dim is not None and not is_generator:
            raise ValueError(f"latent_dim: got {latent_dim}, but only parametrization='generator' takes noise")
        if scheme != "jko" and (is_generator or math.isinf(step_size)):
            reason = "parametrization='generator'" if is_generator else "an infinite step_size"
            raise ValueError(f"scheme: {scheme!r} moves the particles themselves; {reason} needs 'jko'")
        self.seed = int(seed)
        self.functional = functional
        self._split = split(scheme, functional)
        self.dim = dim
        self.latent_dim = latent_dim
        self.step_size = float(step_size)
        self.scheme = scheme
        self.parametrization = parametrization
        self._source_dim = latent if is_generator else dim
        with seeded(self.seed, 0, torch.device("cpu")):
            self.map = asked(default_map, dim, self._source_dim) if map is None else map
            self.critic = asked(default_critic, dim) if critic is None else critic
        self.training = training or Training()
        self.engine = engine
        require_known(engine)
        explicit = self._split.explicit
        if explicit is not None and explicit.needs_critic and self.training.dropouts[1]:
            rate = self.training.dropouts[1]
            raise ValueError(f"critic_dropout: scheme {scheme!r} fits its critic without dropout, got {rate}")
        with seeded(self.seed, 0, torch.device("cpu")):
            if self._split.implicit is not None:
                self._engine(make_module(self.map, "map"), self._new_critic())

    @entry(differentiates=True)
    def init(self, x0: Source) -> FlowState:
        """The state before the first step.

        Args:
            x0: Samples of P_0 [N, D], or a callable n -> [n, D]; of a generator, its noise [N, latent_dim].
        """
        with seeded(self.seed, 0, x0.device if isinstance(x0, Tensor) else torch.device("cpu")):
            if not isinstance(x0, Tensor) and not callable(x0):
                raise TypeError(f"x0 must be a tensor [N, D] or a callable n -> samples, got {type(x0).__name__}")
            source = x0 if isinstance(x0, Tensor) else asked(x0, self.training.pool_size)
            self._check_source(source)
            source = source.detach()
            critic = self._new_critic()
            critic = critic.to(source) if critic else None
            if self.parametrization == "composition":
                return FlowState(0, self.seed, source, critic=critic)
            maps = (make_module(self.map, "map").to(source),)
            particles = push(maps, source)
            require_shape("map", particles, (len(source), self.dim))
            return FlowState(0, self.seed, particles, maps, critic=critic, latents=source)

    @entry(differentiates=True)
    @torch.enable_grad()
    def step(self, state: FlowState, *, x0: Source | None = None, on_iteration: Any = None) -> FlowState:
        """Solve one JKO step. ``state`` stays as it was, whatever happens.

        Args:
            state: Where to start.
            x0: A callable gives fresh particles of P_k, carried through the maps so far; else the state's are used.
            on_iteration: See ``StepProblem``.

        Raises:
            NonFiniteError: If the loss or a particle becomes NaN or infinite; names the step.
        """
        start = time.perf_counter()
        k = state.step + 1
        with seeded(self.seed, k, state.particles.device):
            particles, latents = state.particles, state.latents
            if callable(x0) and state.step:
                fresh = asked(x0, self.training.pool_size)
                self._check_source(fresh)
                particles, latents = push(state.maps, fresh), None if latents is None else fresh
            critic = None if state.critic is None else copied(state.critic)
            map_rate, critic_rate = self.training.rates(k)
            critic_optimizer = None
            if critic is not None:
                critic_optimizer = self._optimizer(critic, critic_rate, state.critic_optimizer)
            map_state = state.map_optimizer
            try:
                forward = self._forward_step(particles, critic, critic_optimizer)
                moved = particles if forward is None else forward.move(particles, particles)
                require_finite(moved)
                reference = self.functional.reference(moved)
                transport: nn.Module | None = forward
                implicit = self._split.implicit
                if implicit is not None:
                    backward, carried = self._next_map(state)
                    problem = StepProblem(
                        functional=implicit,
                        step_size=self.step_size * self._split.fraction,
                        inputs=moved if latents is None else latents,
                        anchors=moved,
                        reference=reference if implicit is self.functional else implicit.reference(moved),
                        map=backward,
                        critic=critic,
                        map_optimizer=self._optimizer(backward, map_rate, carried),
                        critic_optimizer=critic_optimizer,
                        training=self.training,
                        on_iteration=on_iteration,
                    )
                    self._engine(backward, critic).solve(problem)
                    moved = push((backward,), problem.inputs)
                    map_state = problem.map_optimizer.state_dict()
                    transport = backward if forward is None else nn.Sequential(forward, backward)
                record = self._record(k, critic, reference, particles, moved, start)
            except NonFiniteError as error:
                raise NonFiniteError(f"JKO step {k}: {error}; the state after step {state.step} is kept") from None
        assert transport is not None  # a step does something
        return replace(
            state,
            step=k,
            particles=moved,
            latents=latents,
            maps=(*state.maps, transport) if latents is None else (transport,),
            critic=critic,
            map_optimizer=map_state,
            critic_optimizer=critic_optimizer.state_dict() if critic_optimizer else None,
            history=(*state.history, record),
        )

    @entry(differentiates=True)
    def run(
        self,
        x0: Source,
        n_steps: int,
        *,
        progress: bool = True,
        checkpoint: str | Path | RunFolder | None = None,
        state: FlowState | None = None,
        callbacks: Sequence[Callable[[FlowState], object]] = (),
    ) -> FlowResult:
        """Run the flow for ``n_steps`` JKO steps.

        Args:
            x0: Samples of P_0 [N, D], or a callable n -> [n, D]: then every step sees fresh particles. Of a generator,
                its noise [N, latent_dim], or a callable n -> [n, latent_dim].
            n_steps: Steps in all, those already in ``state`` included.
            progress: Whether to show a progress bar.
            checkpoint: A folder that receives the state after every step; see ``gwf_fast.flows.jko_checkpoint``.
            state: Go on from here instead of from P_0.
            callbacks: Called with the state after every step; the run ends where one returns True.

        Raises:
            NonFiniteError: If the loss or a particle becomes NaN or infinite; the last checkpoint is kept.
            FileExistsError: If the folder holds another run and ``state`` is None.
            BlockingIOError: If another run is writing to it.
        """
        n_steps = as_integer("n_steps", n_steps, least=0)
        with contextlib.ExitStack() as stack:
            folder = None if checkpoint is None else stack.enter_context(RunFolder.of(checkpoint))
            if folder is not None and state is None:
                folder.refuse_occupied()
            keeper = Keeper(folder, self, n_steps, x0)
            state = self.init(x0) if state is None else state
            if folder is not None:
                for name, module in zip(("map", "critic"), self.blank_modules(state.particles), strict=True):
                    require_storable(name, module)
            keeper.keep(state)
            bar = stack.enter_context(shown_progress(n_steps, state.step, shown=progress, name="JKO steps"))
            ends = False
            while state.step < n_steps and not ends:
                state = self.step(state, x0=x0, on_iteration=inner_progress(bar, self.training.iterations))
                keeper.keep(state)
                bar.update()
                ends = True in [callback(state) is True for callback in callbacks]
        return FlowResult(state, x0, self)

    def save(self, state: FlowState, folder: str | Path, x0: Source) -> None:
        """Write a checkpoint of a state; FileExistsError if the folder holds another run."""
        save(folder, self, state, state.step, x0)

    @classmethod
    def load(cls, checkpoint: str | Path, **given: Any) -> FlowResult:
        """The result that a checkpoint holds; what it could not hold is given as to :meth:`resume`."""
        flow, state, _, source = load(checkpoint, cls, **given)
        return FlowResult(state, source, flow)

    @classmethod
    def resume(
        cls,
        checkpoint: str | Path,
        *,
        n_steps: int | None = None,
        progress: bool = True,
        functional: Functional | None = None,
        map: nn.Module | Callable[[], nn.Module] | None = None,
        critic: nn.Module | Callable[[], nn.Module] | None = None,
        x0: Source | None = None,
        training: Training | None = None,
        callbacks: Sequence[Callable[[FlowState], object]] = (),
    ) -> FlowResult:
        """Go on from a checkpoint, bit for bit as if the run had not stopped, and keep writing to it.

        Checkpoints hold tensors and JSON, no code: what the run was given as a Python function or a module of the
        user's own has to be given again.

        Args:
            checkpoint: The folder.
            n_steps: Steps in all; None for as many as the run was started with.
            progress: Whether to show a progress bar.
            functional: As the run had it, where it holds a function.
            map: As the run had it, where it was not a ``gwf_fast.nn`` network.
            critic: The same.
            x0: As the run had it, where it was a callable.
            training: As the run had it, where its optimiser or schedule was a function.
            callbacks: As in :meth:`run`.

        Raises:
            ValueError: If something is missing, or the checkpoint can't be read.
        """
        with RunFolder.existing(checkpoint) as folder:
            given: dict[str, Any] = {"functional": functional, "map": map, "critic": critic, "x0": x0}
            flow, state, planned, source = load(folder, cls, training=training, **given)
            given = {"progress": progress, "checkpoint": folder, "callbacks": callbacks, "state": state}
            return flow.run(source, planned if n_steps is None else n_steps, **given)

    def explain(self, like: Tensor | None = None) -> str:
        """Which engine solves steps of particles ``like`` these, and why not the others; see ``gwf.explain``."""
        if self._split.implicit is None:
            return f"engine: none, scheme {self.scheme!r} has no inner problem"
        with seeded(self.seed, 0, torch.device("cpu")):
            modules = make_module(self.map, "map"), self._new_critic()
        if like is not None:
            modules = modules[0].to(like), modules[1] and modules[1].to(like)
        return explained(self.engine, self._split.implicit, *modules, self.training)

    def blank_modules(self, particles: Tensor) -> tuple[nn.Module, nn.Module | None]:
        """An untrained map and critic on the device and in the precision of the particles: what a checkpoint fills."""
        with seeded(self.seed, 0, particles.device):
            critic = self._new_critic()
            critic = critic.to(particles) if critic is not None else None
            backward = make_module(self.map, "map").to(particles)
            if self._split.explicit is None:
                return backward, critic
            forward = ForwardStep(
                self._split.explicit, self.step_size * self._split.fraction, particles.clone(), self._frozen(critic)
            )
            return forward if self._split.implicit is None else nn.Sequential(forward, backward), critic

    def _forward_step(
        self, particles: Tensor, critic: nn.Module | None, optimizer: torch.optim.Optimizer | None
    ) -> ForwardStep | None:
        """The explicit part of the next step, its critic fitted to the particles; None where there is none."""
        explicit = self._split.explicit
        if explicit is None:
            return None
        if explicit.needs_critic:
            assert critic is not None
            assert optimizer is not None
            fit_critic(explicit, critic, optimizer, particles, self.training)
        return ForwardStep(explicit, self.step_size * self._split.fraction, particles, self._frozen(critic))

    def _frozen(self, critic: nn.Module | None) -> nn.Module | None:
        """The critic that an explicit step keeps."""
        explicit = self._split.explicit
        return copied(critic) if critic is not None and explicit is not None and explicit.needs_critic else None

    def _next_map(self, state: FlowState) -> tuple[nn.Module, dict[str, Any] | None]:
        """The map of the next step before training, and the optimiser state it goes on with."""
        if self.training.warm_start and state.maps:
            last = state.maps[-1] if self._split.explicit is None else list(state.maps[-1].children())[-1]
            return copied(last), state.map_optimizer
        return make_module(self.map, "map").to(state.particles), None

    def _engine(self, map: nn.Module, critic: nn.Module | None) -> Engine:
        assert self._split.implicit is not None
        return resolve(self.engine, self._split.implicit, map, critic, self.training)

    def _new_critic(self) -> nn.Module | None:
        return asked(self.functional.build_critic, lambda: make_module(self.critic, "critic"))

    def _optimizer(self, module: nn.Module, lr: float, carried: dict[str, Any] | None) -> torch.optim.Optimizer:
        parameters = [p for p in module.parameters() if p.requires_grad]
        t = self.training
        options: dict[str, Any] = {"lr": lr, "betas": t.betas, "weight_decay": t.weight_decay, "carried": carried}
        return new_optimizer(t.optimizer, parameters, **options)

    def _record(
        self, k: int, critic: nn.Module | None, reference: Any, before: Tensor, moved: Tensor, start: float
    ) -> StepRecord:
        require_finite(moved)
        self.functional.check_moves(before, moved, self.step_size)
        w2 = (moved - before).square().sum(-1).mean().sqrt().item()
        if critic is not None:
            critic.eval()
        with torch.no_grad():
            z = self.functional.draw(_VALUE_SAMPLES, reference)
            x = batch(moved, _VALUE_SAMPLES)
            value = float(self.functional.value(critic, x, z, reference))
        loss = w2**2 / (2 * self.step_size) + value
        if not math.isfinite(loss):
            raise NonFiniteError(f"the value of the functional is {value}")
        return StepRecord(k, loss, value, w2, time.perf_counter() - start)

    def _check_source(self, particles: Tensor) -> None:
        draws_batches = self._split.implicit is not None or self.functional.needs_critic
        check_source(particles, self._source_dim, self.training.batch_size if draws_batches else 0)
