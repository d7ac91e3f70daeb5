"""Updates of a ``DriftingModel``, one after another: on CUDA devices a graph, where it can be, and few looks at it."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gwf_fast import drift as drifts
from gwf_fast.drift.learned import is_stateful
from gwf_fast.drift.loss import drifting_loss
from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.drifting_state import DriftingState
from gwf_fast.flows.engines.graph import Recorder, Repeated, plain_attributes
from gwf_fast.flows.training import USERS_OPTIMIZER, Rates
from gwf_fast.functionals.evaluation import ASKED, Target, draw_target, is_asked
from gwf_fast.nn.descent import average_into, differentiate, follow, step_unless
from gwf_fast.randomness.seeded import Redirected, asked, own_generator, seed_step, seeded

if TYPE_CHECKING:
    from gwf_fast.flows.drifting import DriftingModel

MOST = 50
"""Updates between two looks at the device."""


class DriftingLoop:
    """The updates of one run; they ask nothing of the host but seeds.

    Whether an update is finite stays on the device. From one that is not on, parameters, moments and the average are
    left as they were, so that a look some updates later finds the last good state.

    Args:
        model: What is trained, and how.
        state: Is changed.
        target: Samples of the target.
        n_steps: Updates of the run.
        record: See ``Repeated``.
    """

    def __init__(
        self, model: DriftingModel, state: DriftingState, target: Target, n_steps: int, record: Recorder | None = None
    ) -> None:
        self._model, self._state, self._target, self._first = model, state, target, state.step
        self._like = like = next(state.generator.parameters())
        self._device = device = like.device
        self._network = Redirected.where_needed(state.generator)
        self._all_parameters = list(state.generator.parameters())
        self._parameters = [p for p in self._all_parameters if p.requires_grad]
        self._report = torch.zeros((2, MOST), dtype=torch.float64, device=device)  # |V|^2; whether something failed
        self._position = torch.zeros(1, dtype=torch.int64, device=device)  # in the report
        self._update = torch.full((1,), state.step, dtype=torch.int64, device=device)  # updates done
        self._failed = torch.zeros((), dtype=torch.float32, device=device)  # as fused Adam takes it: 1 skips an update
        changes = model.lr_schedule != "constant"
        counter = None if record is None and device.type != "cuda" else self._update
        self._rates = Rates(state.optimizer, lambda j: model.rate(j, n_steps), n_steps, changes, counter)
        self._repeated = Repeated(
            self._advance,
            self._tensors,
            device,
            total=n_steps - state.step,
            refusal=self._refusal(),
            record=record,
            begin=lambda number: seed_step(model.seed, self._first + number + 1, device),
            settings=lambda: plain_attributes([state.generator]),
        )
        self._has_warned = record is not None  # in a test

    @property
    def most(self) -> int:
        """Updates that are best done at once."""
        return MOST if self._repeated.is_replaying else 1

    @torch.enable_grad()
    def run(self, count: int) -> None:
        """So many updates, at most ``MOST``.

        Raises:
            NonFiniteError: If a drift or a gradient is NaN or infinite; the parameters are those before that update.
        """
        start, state = time.perf_counter(), self._state
        with seeded(self._model.seed, self._first, self._device):  # and anew in each update
            self._repeated(count)
        sizes, failed = self._report[:, :count].tolist()
        self._position.zero_()
        good = failed.index(1.0) if 1.0 in failed else count
        state.step += good
        state.pending += sizes[:good]
        self._rates.put_back(max(state.step - 1, 0))
        for parameter in self._parameters:
            parameter.grad = None  # it may lie in the memory of a graph
        if good < count:
            raise NonFiniteError(
                f"update {state.step + 1}: the mean of |V|^2 is {sizes[good]}; "
                f"the state after update {state.step} is kept"
            )
        if self._repeated.refusal is not None and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"gwf_fast trains without a CUDA graph, slowly: {self._repeated.refusal}", stacklevel=3)
        state.seconds += time.perf_counter() - start

    def _refusal(self) -> str | None:
        if is_asked(self._target):
            return ASKED
        if is_stateful(self._state.drift):
            return "the drift learns as it goes, with an optimiser of its own"
        if self._model.optimizer is not None:
            return USERS_OPTIMIZER
        if not self._rates.is_exact:
            return "PyTorch takes a rate that changes on the device in float32 only, and this generator is in float64"
        return None

    def _tensors(self) -> list[Tensor]:
        state = self._state
        found = [self._report, self._position, self._update, self._failed]
        for module in (state.generator, state.average):
            if module is not None:
                found += [*module.parameters(), *module.buffers()]
        return found + [value for slots in state.optimizer.state.values() for value in slots.values()]

    def _advance(self, number: int) -> None:
        model, state, like = self._model, self._state, self._like
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        z = torch.randn(model.batch_size, model.latent_dim, generator=own_generator(like.device), **options)
        x = self._network(z)
        if x.shape != (model.batch_size, model.dim):
            raise ValueError(f"generator must give samples {[model.batch_size, model.dim]}, got {list(x.shape)}")
        y = draw_target(self._target, model.n_targets).to(like)
        velocity, size = _velocity(asked(state.drift, x.detach(), y))
        loss = drifting_loss(x, _normalized(velocity))
        norm = torch.stack(torch._foreach_norm(differentiate(loss, self._parameters))).sum()
        is_bad = ~(size.isfinite() & norm.isfinite())
        torch.maximum(self._failed, is_bad.to(self._failed), out=self._failed)
        self._report.index_copy_(1, self._position, torch.stack((size, self._failed.double()))[:, None])
        self._position += 1
        self._rates.set(self._first + number)
        step_unless(self._failed, state.optimizer, is_ours=model.optimizer is None)
        if state.average is not None and model.ema is not None:
            average_into(list(state.average.parameters()), self._all_parameters, model.ema, self._failed)
            follow(list(state.average.buffers()), list(state.generator.buffers()), self._failed)
        self._update += 1


def _velocity(drift: Any) -> tuple[Tensor, Tensor]:
    """The velocity, and the mean over samples of its square, of a drift that is normalised before that."""
    if isinstance(drift, drifts.MultiDrift):
        return drift.velocity, drift.raw.mean().double()
    if not isinstance(drift, Tensor):
        raise TypeError(f"drift must give a tensor [N, D], got {type(drift).__name__}")
    return drift, drift.double().square().sum(-1).mean()


def _normalized(velocity: Tensor) -> Tensor:
    """V / sqrt(mean V^2); 0 where V is. The square of a float32 may underflow, so it is taken in double."""
    rms = velocity.double().square().mean().sqrt()
    return (velocity / rms.masked_fill(rms == 0, 1.0)).to(velocity)
