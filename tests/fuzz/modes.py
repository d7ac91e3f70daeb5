"""How a call is made: plainly, for derivatives, traced, mapped, in other contexts and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from tests.fuzz.arguments import DTYPES, Call, generator, laid_out
from tests.fuzz.function import Function, Output
from tests.fuzz.rounding import summed

Tensors = dict[str, Tensor]
MODES = {
    "plain": 40,
    "grad": 22,
    "grad2": 6,
    "no_grad": 5,
    "inference": 6,
    "autocast": 6,
    "vmap": 3,
    "compile": 0.4,
    "threads": 4,
    "concurrent": 3,
}
"""What is drawn, and how often. "threads" asks for the same bits from one thread and from two, "concurrent" from two
Python threads at once as from none beside."""


def draw_mode(rng: Random, function: Function, call: Call) -> str:
    """One that the function takes."""
    known = {m: w for m, w in MODES.items() if function.modes is None or m in function.modes}
    if not function.gradients or call.get("constant"):
        known = {m: w for m, w in known.items() if not m.startswith("grad")}
    return rng.choices(list(known), list(known.values()))[0]


def differentiated(function: Function, call: Call, tensors: Tensors) -> list[str]:
    """Names of the tensors that a call is differentiated in; some of them, at times."""
    names = [name for name in function.gradients if name in tensors]
    return names[: 1 + call["seed"] % 3] or names


def leaves(tensors: Tensors, names: list[str]) -> Tensors:
    """The same tensors, those of the names as leaves that require grad; what is one tensor stays one."""
    made: dict[int, Tensor] = {}
    out = {}
    for name, t in tensors.items():
        key = id(t)
        if key not in made:
            wanted = name in names or any(tensors[other] is t for other in names)
            made[key] = t.detach().requires_grad_() if wanted else t
        out[name] = made[key]
    return out


def cotangents(call: Call, outputs: Output, stream: int = 50) -> Output:
    """What results are multiplied by before they are added up."""
    return tuple(
        torch.randn(t.shape, generator=generator(call, stream + k), dtype=torch.float64).to(t.dtype)
        for k, t in enumerate(outputs)
    )


def gradients(run: Callable[[Tensors], Output], tensors: Tensors, names: list[str], call: Call) -> Output:
    """Derivatives of the results, weighted, in the tensors of the names."""
    inputs = leaves(tensors, names)
    outputs = run(inputs)
    wanted = list({id(inputs[name]): inputs[name] for name in names}.values())
    total = _weighted(outputs, cotangents(call, outputs), call)
    if not total.requires_grad:
        return tuple(torch.zeros_like(t) for t in wanted)
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True))


def second_gradients(run: Callable[[Tensors], Output], tensors: Tensors, names: list[str], call: Call) -> Output:
    """The gradient of (gradient . v), v a constant."""
    inputs = leaves(tensors, names)
    outputs = run(inputs)
    wanted = list({id(inputs[name]): inputs[name] for name in names}.values())
    total = _weighted(outputs, cotangents(call, outputs), call)
    zeros = tuple(torch.zeros_like(t) for t in wanted)
    if not total.requires_grad:
        return zeros
    first = torch.autograd.grad(total, wanted, allow_unused=True, create_graph=True)
    used = tuple(torch.zeros_like(t) if g is None else g for t, g in zip(wanted, first, strict=True))
    slope = _weighted(used, cotangents(call, used, 56))
    if not slope.requires_grad:
        return zeros
    second = torch.autograd.grad(slope, wanted, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(wanted, second, strict=True))


def _weighted(outputs: Output, weights: Output, call: Call | None = None) -> Tensor:
    # what is infinite by convention, beyond the lengths, or in the precision of the call, carries nothing
    largest = torch.finfo(DTYPES[call["dtype"]] if call else torch.float64).max
    return summed(torch.where(t.abs() > largest, 0.0, t * w).sum() for t, w in zip(outputs, weights, strict=True))


def run_package(function: Function, call: Call, tensors: Tensors, lengths: Tensors) -> Output:
    """The package's results in the mode of the call."""
    mode = call["mode"]

    def run(inputs: Tensors) -> Output:
        return function(inputs, lengths, call)

    names = differentiated(function, call, tensors)
    if mode == "grad":
        return gradients(run, tensors, names, call)
    if mode == "grad2":
        return second_gradients(run, tensors, names, call)
    if mode == "no_grad":
        with torch.no_grad():
            return run(leaves(tensors, names))
    if mode == "inference":
        with torch.inference_mode():
            fresh = {id(t): laid_out(t.clone(), call["x_layout"]) for t in tensors.values()}
            return tuple(t.clone() for t in run({name: fresh[id(t)] for name, t in tensors.items()}))
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            return run(tensors)
    if mode == "vmap":
        doubled = {name: torch.stack((t, t)) for name, t in tensors.items()}
        # PyTorch's own products may round one of two equal problems otherwise than the other
        return tuple(t[call["seed"] % 2] for t in torch.func.vmap(run)(doubled))
    if mode == "compile":
        torch._dynamo.reset()
        return torch.compile(run, fullgraph=True, backend="eager")(tensors)
    if mode == "threads":
        return _in_threads(lambda: run(tensors))
    if mode == "concurrent":
        return _at_once(lambda: run(tensors))
    return run(tensors)


def _same_bits(results: list[Output], what: str) -> Output:
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            if not torch.equal(a.isnan(), b.isnan()) or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                raise AssertionError(f"{what}: results differ in their last digits, or by more")
    return results[0]


def _in_threads(run: Callable[[], Output]) -> Output:
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return _same_bits(results, "threads")


def _at_once(run: Callable[[], Output]) -> Output:
    results: list[Output] = [run()]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(run())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return _same_bits(results, "concurrent")


def run_dense(function: Function, call: Call, tensors: Tensors, lengths: Tensors, rounding: Callable) -> Output:
    """The truth in the mode of the call: the results, or their derivatives by autograd of the dense formula."""
    made: dict[int, Tensor] = {}
    wide = {name: made.setdefault(id(t), t.detach().resolve_neg().double()) for name, t in tensors.items()}
    names = differentiated(function, call, tensors)

    def run(inputs: Tensors) -> Output:
        return function.dense(rounding(), inputs, lengths, call)

    if call["mode"] == "grad":
        return gradients(run, wide, names, call)
    if call["mode"] == "grad2":
        return second_gradients(run, wide, names, call)
    with torch.no_grad():
        return run(wide)
