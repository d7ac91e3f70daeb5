"""What both trainers share: results saved and loaded, callbacks, states that a step leaves, the user's optimisers."""

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import nn

import gwf_fast as gwf

X0 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
TARGET = torch.randn(60, 2, generator=torch.Generator().manual_seed(1)) + 1
Z = torch.linspace(-1, 1, 20).reshape(10, 2)


def flow(functional=None, **options):
    training = gwf.Training(**{"batch_size": 16, "iterations": 4, **options.pop("training", {})})
    return gwf.JKOFlow(functional or gwf.JensenShannon(TARGET), 2, 0.3, training=training, seed=3, **options)


def drifting(drift="energy", **options):
    torch.manual_seed(0)
    defaults = {"latent_dim": 2, "batch_size": 16, "record_every": 2, "generator": gwf.nn.MLP([2, 8, 2], "silu")}
    return gwf.DriftingModel(drift, 2, **{**defaults, **options})


def tensors(thing):
    """All numbers of a state."""
    if isinstance(thing, torch.Tensor):
        return [thing.detach().clone()]
    if isinstance(thing, dict):
        return [t for _, value in sorted(thing.items()) for t in tensors(value)]
    if isinstance(thing, (tuple, list)):
        return [t for value in thing for t in tensors(value)]
    if isinstance(thing, nn.Module):
        return tensors(list(thing.state_dict().values()))
    return []


def all_equal(a, b):
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_flows_result_is_saved_and_loaded(tmp_path):
    made = flow(training={"ema": 0.8})
    result = made.run(X0, 2, progress=False)
    result.save(tmp_path / "r")
    loaded = gwf.load(tmp_path / "r")
    assert isinstance(loaded, gwf.FlowResult) and loaded.state.step == 2
    assert torch.equal(loaded.particles, result.particles) and torch.equal(loaded.push(X0), result.push(X0))
    assert loaded.history == result.history
    whole = made.run(X0, 3, progress=False)
    assert torch.equal(loaded.flow.run(X0, 3, progress=False, state=loaded.state).particles, whole.particles)
    resumed = gwf.JKOFlow.resume(tmp_path / "r", n_steps=3, progress=False)
    assert torch.equal(resumed.particles, whole.particles)
    with pytest.raises(FileExistsError, match="holds another run"):
        result.save(tmp_path / "r")
    with pytest.raises(ValueError, match="save: this result was made by hand"):
        gwf.FlowResult(result.state, X0).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"no checkpoint\.json in"):
        gwf.load(tmp_path / "nothing")


def test_a_drifting_result_is_saved_and_loaded(tmp_path):
    model = drifting(ema=0.9, lr_schedule="cosine")
    result = model.run(TARGET, 5, progress=False)
    result.save(tmp_path / "r")
    loaded = gwf.load(tmp_path / "r")
    assert isinstance(loaded, gwf.DriftingResult) and loaded.step == loaded.state.step == 5
    assert torch.equal(loaded.generator(Z), result.generator(Z)) and loaded.history == result.history
    assert all_equal(tensors(loaded.state.values()), tensors(result.state.values()))
    gone_on = [r.model.run(TARGET, 8, progress=False, state=r.state).generator(Z) for r in (loaded, result)]
    assert torch.equal(*gone_on)
    assert loaded.state.step == 5  # what was gone on from is left as it was


def test_what_a_checkpoint_cant_hold_is_given_to_load(tmp_path):
    made = flow(gwf.Potential(lambda x: x.square().sum(-1)))
    made.run(X0, 1, progress=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"give resume\(\) the argument functional="):
        gwf.load(tmp_path)
    assert gwf.load(tmp_path, functional=made.functional).state.step == 1


def test_reprs_are_short():
    result = flow().run(X0, 2, progress=False)
    value = f"{result.history[-1].value:.4g}"
    assert repr(result) == f"FlowResult(2 steps, 40 particles in 2 dimensions, value {value})"
    assert repr(result.state) == f"FlowState(2 steps, 40 particles in 2 dimensions, value {value})"
    trained = drifting().run(TARGET, 2, progress=False)
    assert repr(trained) == f"DriftingResult(2 updates, MLP, |V|^2 {trained.history[-1].drift:.4g})"
    assert repr(trained.state) == "DriftingState(2 updates, MLP)"


def test_callbacks_see_each_step_and_may_end_the_run(tmp_path):
    seen, whole = [], flow().run(X0, 3, progress=False)
    ended = flow().run(
        X0, 3, progress=False, checkpoint=tmp_path, callbacks=[seen.append, lambda state: state.step == 2, seen.append]
    )
    assert [state.step for state in seen] == [1, 1, 2, 2] and ended.state.step == 2
    assert torch.equal(gwf.JKOFlow.resume(tmp_path, progress=False).particles, whole.particles)


def test_callbacks_of_drifting_models_get_states_that_stay(tmp_path):
    seen, kept = [], []

    def callback(state):
        seen.append(state)
        kept.append(tensors(state.values()))
        return state.step == 4

    whole = drifting().run(TARGET, 6, progress=False)
    ended = drifting().run(TARGET, 6, progress=False, checkpoint=tmp_path, callbacks=[callback])
    assert [state.step for state in seen] == [2, 4] and ended.step == 4
    assert all(all_equal(tensors(state.values()), before) for state, before in zip(seen, kept, strict=True))
    assert not all_equal(*kept)
    resumed = gwf.DriftingModel.resume(tmp_path, n_steps=6, progress=False)
    assert torch.equal(resumed.generator(Z), whole.generator(Z))


@pytest.mark.parametrize("drift", ["energy", "critic"])
def test_a_drifting_step_leaves_its_state(drift):
    """The old state may be stepped again, and gives the same; steps are those of a run."""
    model = drifting(drift, ema=0.9, options={"steps": 2} if drift == "critic" else {})
    states = [model.init(TARGET)]
    for _ in range(3):
        states.append(model.step(states[-1], TARGET, 3))
    assert [state.step for state in states] == [0, 1, 2, 3]
    again = model.step(states[1], TARGET, 3)
    assert all_equal(tensors(again.values()), tensors(states[2].values()))
    assert not all_equal(tensors(states[2].values()), tensors(states[1].values()))
    run = model.run(TARGET, 3, progress=False)
    assert all_equal(tensors(run.state.values()), tensors(states[3].values()))


def test_a_state_to_go_on_from_stays():
    model = drifting()
    state = model.step(model.init(TARGET), TARGET, 4)
    before = tensors(state.values())
    model.run(TARGET, 4, progress=False, state=state)
    assert state.step == 1 and all_equal(tensors(state.values()), before)


def halves(iteration, iterations):
    return 1.0 if iteration < iterations / 2 else 0.5


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_a_schedule_of_the_users_is_that_of_the_name(engine):
    """A cosine given as a function, and one that is none."""
    mine = lambda j, n: 0.5 * (1 + math.cos(math.pi * j / n))  # noqa: E731
    runs = [
        flow(training={"lr_schedule": schedule, "lr": 0.01}, engine=engine).run(X0, 1, progress=False).particles
        for schedule in ("cosine", mine, "constant", halves)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[2], runs[3]) and not torch.equal(runs[0], runs[3])
    trained = [
        drifting(lr_schedule=schedule).run(TARGET, 6, progress=False).generator(Z)
        for schedule in ("cosine", mine, "constant", halves)
    ]
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[2], trained[3])


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def test_an_optimiser_of_the_users_against_a_loop_by_hand():
    """One JKO step of E V by SGD with momentum, without a critic."""
    made = flow(
        gwf.Potential(lambda x: x.square().sum(-1)),
        training={"optimizer": sgd, "lr": 0.05, "batch_size": 40, "gradient_clip": None},
        map=lambda: nn.Linear(2, 2),
    )
    assert "the optimiser is not this package's Adam" in gwf.explain(made.run)
    network = copy.deepcopy(made.blank_modules(X0)[0])
    optimizer = sgd(network.parameters(), lr=0.05)
    start = made.init(X0)
    after = made.step(start)
    with torch.no_grad():  # the map of the step begins with weights of its own
        for p, q in zip(network.parameters(), _first(made, start).parameters(), strict=True):
            p.copy_(q)
    for _ in range(4):
        y = network(X0)
        loss = (y - X0).square().sum(-1).mean() / 0.6 + y.square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(after.maps[0](X0), network(X0), rtol=1e-5, atol=1e-6)


def _first(made, state):
    """The map that a step begins with: that of one whose rate is nothing."""
    training = gwf.Training(batch_size=40, iterations=1, lr=1e-30, optimizer=sgd)
    still = gwf.JKOFlow(made.functional, 2, 0.3, training=training, seed=3, map=made.map)
    return still.step(state).maps[0]


@pytest.mark.parametrize("optimizer", ["SGD", sgd, functools.partial(torch.optim.AdamW, weight_decay=0.1), "Adagrad"])
def test_runs_with_other_optimisers_resume(tmp_path, optimizer):
    training = {"optimizer": optimizer, "lr": 0.01}
    whole = flow(training=training).run(X0, 3, progress=False)
    flow(training=training).run(X0, 2, progress=False, checkpoint=tmp_path / "flow")
    given = {} if isinstance(optimizer, str) else {"training": flow(training=training).training}
    resumed = gwf.JKOFlow.resume(tmp_path / "flow", n_steps=3, progress=False, **given)
    assert torch.equal(resumed.particles, whole.particles)
    trained = drifting(optimizer=optimizer, lr=0.01).run(TARGET, 5, progress=False)
    drifting(optimizer=optimizer, lr=0.01).run(TARGET, 3, progress=False, checkpoint=tmp_path / "drifting")
    given = {} if isinstance(optimizer, str) else {"optimizer": optimizer}
    model = gwf.DriftingModel.resume(tmp_path / "drifting", n_steps=5, progress=False, **given)
    assert torch.equal(model.generator(Z), trained.generator(Z))


def test_a_failing_update_of_another_optimiser_is_not_made():
    bad = iter((False, False, True))
    model = drifting(lambda x, y: x * math.nan if next(bad) else y - x, optimizer="SGD", lr=0.01)
    state = model.step(model.step(model.init(TARGET), TARGET, 3), TARGET, 3)
    before = tensors(state.values())
    with pytest.raises(gwf.NonFiniteError, match="the state after update 2 is kept"):
        model.run(TARGET, 3, progress=False, state=state)
    assert all_equal(tensors(state.values()), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "Adamw"}, ValueError, "optimizer must be None, the name of .*, got 'Adamw'"),
        ({"optimizer": "Optimizers"}, ValueError, "optimizer must be None, the name of .*, got 'Optimizers'"),
        ({"optimizer": 3}, TypeError, "optimizer must be None, .* or callable, got int"),
        (
            {"lr_schedule": "linear"},
            ValueError,
            "lr_schedule must be one of constant, cosine, or callable, got",
        ),
    ],
)
def test_settings_that_are_none(options, error, message):
    for make in (lambda: gwf.Training(**options), lambda: drifting(**options)):
        with pytest.raises(error, match=message):
            make()


def test_what_is_no_optimiser_is_named():
    with pytest.raises(TypeError, match=r"optimizer must give a torch\.optim\.Optimizer, got list"):
        flow(training={"optimizer": lambda parameters, lr: list(parameters)}).run(X0, 1, progress=False)


def test_the_average_of_a_generator_keeps_up_with_buffers():
    """Statistics of batches are those of the last descent, with an average of the parameters and without."""
    made = []
    for ema in (None, 0.5):
        training = gwf.Training(batch_size=16, iterations=6, ema=ema, lr=0.05)
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        options: dict[str, Any] = {
            "parametrization": "generator",
            "latent_dim": 3,
            "map": network,
            "training": training,
        }
        made_of = gwf.JKOFlow(gwf.SquaredMMD(TARGET, gwf.Riesz()), 2, 0.5, **options)
        state = made_of.step(made_of.init(torch.randn(32, 3, generator=torch.Generator().manual_seed(1))))
        made.append(state.maps[0])
    plain, averaged = made
    for mine, theirs, first in zip(averaged.buffers(), plain.buffers(), network.buffers(), strict=True):
        assert torch.equal(mine, theirs) and not torch.equal(mine, first)
    assert not any(torch.equal(p, q) for p, q in zip(averaged.parameters(), plain.parameters(), strict=True))
