"""One call from its number to its verdict."""

from __future__ import annotations

import functools
import json
import math
import re
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

import gwf_fast as gwf
from tests.fuzz import (
    table_drifting,
    table_fast,
    table_flows,
    table_networks,
    table_pairs,
    table_sliced,
    table_transport,
)
from tests.fuzz.arguments import DTYPES, Call
from tests.fuzz.function import Function, is_extreme, make
from tests.fuzz.judge import Verdict, judge
from tests.fuzz.modes import draw_mode, run_dense, run_package
from tests.fuzz.radial import SCALED
from tests.fuzz.rounding import ULPS, Rounding

_TABLES = (table_pairs, table_fast, table_sliced, table_transport, table_flows, table_drifting, table_networks)
FUNCTIONS: dict[str, Function] = {f.name: f for table in _TABLES for f in table.FUNCTIONS}
"""The table."""

_PERTURBED, _AGAIN = 4, 40
"""Roundings that are drawn, and how many where the error exceeds the largest."""
_REFUSALS: tuple[type[Exception], ...] = (ValueError, TypeError, NotImplementedError, MemoryError)
_REFUSALS += (gwf.AccuracyError, gwf.NonFiniteError)
_REFUSALS += (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)  # in which a trace wraps the others


class Choice(NamedTuple):
    """Which calls.

    Attributes:
        only: A regular expression of whole names of functions; None for all.
        mode: One mode; None for what is drawn.
        larger: Factor on the numbers of points: small calls run in one thread.
    """

    only: str | None = None
    mode: str | None = None
    larger: int = 1


_ALL = Choice()


def draw(seed: int, number: int, choice: Choice = _ALL) -> Call:
    """The call of a number, the same on every machine."""
    rng = Random(f"{seed}:{number}")
    known = [f for f in FUNCTIONS.values() if choice.only is None or re.fullmatch(choice.only, f.name)]
    if not known:
        raise ValueError(f"only must match the name of a function, such as drift.gmd or kernel_.*, got {choice.only!r}")
    function = rng.choices(known, [f.weight for f in known])[0]
    call = function.draw(rng)
    while call["n"] * max(call["m"], call["n"]) * call["d"] * max(1, math.prod(call["batch"])) > 300_000:
        call = function.draw(rng)
    call["f"] = function.name
    call["mode"] = choice.mode or draw_mode(rng, function, call)
    for size in "nm":
        call[size] *= choice.larger
    return json.loads(json.dumps(call))


def perform(call: Call) -> dict[str, Any]:
    """Make a call and judge it.

    Returns:
        What came of it: ``outcome`` "right", "refused", "unconverged", "wrong" or "error", with ``why`` and the
        ``ratio`` of its error to the allowed one.
    """
    function = FUNCTIONS[call["f"]]
    tensors, lengths = make(function, call)
    refusal = function.refuses(call)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = run_package(function, call, tensors, lengths)
    except _REFUSALS as error:
        if refusal or _is_known_refusal(call, error):
            return {"outcome": "refused", "why": str(error)}
        return {"outcome": "error", "why": _said(error)}
    except Exception as error:
        return {"outcome": "error", "why": _said(error)}
    unexpected = [str(w.message) for w in caught if "Sinkhorn stopped" not in str(w.message)]
    if unexpected:
        return {"outcome": "error", "why": f"warned: {unexpected[0][:200]}"}
    if refusal and refusal != "extreme":
        return {"outcome": "refused", "why": "gave a result where it may refuse"}
    if caught:
        return {"outcome": "unconverged", "why": ""}
    return _compare(function, call, tensors, lengths, got)


def _compare(function: Function, call: Call, tensors: Any, lengths: Any, got: Any) -> dict[str, Any]:
    eps = torch.finfo(DTYPES[call["dtype"]]).eps / 2

    def dense(rounding: Callable[[], Rounding], **changed: Any) -> Any:
        return run_dense(function, call | changed, tensors, lengths, rounding)

    def rounded(draws: range) -> list[Any]:
        return [dense(functools.partial(Rounding, ULPS * eps, k)) for k in draws]

    truth, perturbed = dense(Rounding), rounded(range(_PERTURBED))
    if len(got) != len(truth):
        return {"outcome": "error", "why": f"{len(got)} results, expected {len(truth)}"}
    verdict = _judge_all(function, call, got, truth, perturbed)
    if verdict.fault and verdict.ratio < math.inf:  # the largest of more draws is larger
        verdict = _judge_all(function, call, got, truth, perturbed + rounded(range(_PERTURBED, _AGAIN)))
    derivative = call["mode"].startswith("grad")
    if verdict.fault and derivative and _overflows(call, dense(Rounding, mode="plain")):  # of what is infinite
        return {"outcome": "right", "ratio": 0.0}
    if verdict.fault:
        return {"outcome": "wrong", "why": verdict.fault, "ratio": verdict.ratio}
    return {"outcome": "right", "ratio": verdict.ratio}


def _is_beyond(call: Call) -> bool:
    """Whether potentials, which are of the size of squared distances, may overflow."""
    transport = "sinkhorn" in call["f"] or call["f"] == "transport_cost"
    return transport and call["scale"] ** 2 > 1e-4 * torch.finfo(DTYPES[call["dtype"]]).max


def _terms_overflow(call: Call) -> bool:
    """Whether powers of distances or densities may, though what they are multiplied by, or a mean, would be finite."""
    options, scale = call["options"], math.log10(call["scale"])
    orders = 2 + ("grad", "grad2").index(call["mode"]) + 1 if call["mode"] in ("grad", "grad2") else 2
    powers = [e for name, _, *rest in options.get("kernel", ()) if name in ("power_law", "riesz") for e in rest]
    sizes = [(e - order) * scale for e in powers for order in range(orders)]
    if call["f"].startswith("blob_"):  # a density to the power m - 1
        sizes.append(-call["d"] * math.log10(options["bandwidth"]) * max(options.get("m", 2) - 1, 1))
    return max(sizes, default=0.0) > math.log10(torch.finfo(DTYPES[call["dtype"]]).max) - 4


def _makes_nan(call: Call) -> bool:
    """Whether slopes at NaN are asked for, which none promises: of linear pieces, or of samples that do not count."""
    weighted = any(name.endswith("log_weights") for name in call["tensors"])  # of -inf: 0 times NaN
    touches_all = call["f"].startswith("nn.") or weighted or call["options"].get("normalization") == "problem"
    return touches_all and call["place"].startswith("nan")


def _lonely(call: Call) -> int | None:
    """The NaN member of a set whose own pairs do not count."""
    of_itself = call["n"] == 1 and call["f"] in ("svgd_direction", "interaction_energy")  # a constant
    alone = call["options"].get("exclude_self") or of_itself
    if not (call["place"].startswith("nan") and alone):
        return None
    return call["m" if call["place"].endswith("_y") else "n"] // 2


def _overflows(call: Call, truth: Any) -> bool:
    largest = max((float(t.detach().abs().nan_to_num(0.0).amax()) for t in truth if t.numel()), default=0.0)
    return largest > 0.5 * torch.finfo(DTYPES[call["dtype"]]).max


def _steps(function: Function, call: Call) -> float:
    """By what more roundings go into a result than were drawn."""
    again = 2 if call["mode"] == "grad2" else 1
    alike = 2 if call["place"] == "coincident" else 1  # the errors of equal pairs are equal, and not random
    # Slopes of a distance between points 1e-4 apart have lost the digits of their centring: plain PyTorch's have too.
    of_distances = call["options"].get("p") == 1 or call["options"].get("metric") == "l2"
    rooted = (3 if call["d"] == 1 else 2) if of_distances and call["place"] == "near" else 1
    return function.factor * again * alike * rooted


def _steepness(call: Call) -> float:
    """By what sums of derivatives of terms that underflow are larger: 1 / h^2, and powers of r / h within them."""
    kernel = call["options"].get("kernel", ())
    lengths = [term[3] if term[0] == "morse" else term[2] for term in kernel if term[0] in (*SCALED, "morse")]
    for name in ("bandwidth", "temperature"):
        value = call["options"].get(name, ())
        lengths += value if isinstance(value, (list, tuple)) else [value]
    return 1e2 * max(1.0, *(h**-2 for h in lengths)) * max(call["n"], call["m"]) if lengths else 1.0


def _judge_all(function: Function, call: Call, got: Any, truth: Any, perturbed: list[Any]) -> Verdict:
    """The first fault, or the worst of the results."""
    derivative, worst = call["mode"].startswith("grad"), Verdict(None, 0.0)
    for k in range(len(truth)):
        verdict = judge(
            f"result {k}",
            got[k],
            truth[k],
            [p[k] for p in perturbed],
            batch=len(call["batch"]),
            pads=not derivative,
            overflown=_is_beyond(call)
            or (derivative and (is_extreme(call) or _overflows(call, truth) or _makes_nan(call))),
            beyond=_terms_overflow(call),
            lonely=_lonely(call),
            derived=derivative,
            floor=function.floor(call),
            slack=function.slack(call),
            place=call["place"],
            factor=_steps(function, call),
            unit=max(call["scale"], 1 / call["scale"]) * _steepness(call),
        )
        if verdict.fault:
            return verdict
        worst = max(worst, verdict, key=lambda v: v.ratio)
    return worst


def _is_known_refusal(call: Call, error: Exception) -> bool:
    """What the documentation says of dtypes and transforms, in so many words."""
    if call["dtype"] in ("float16", "bfloat16") and "does not serve" in str(error):
        return True
    # of what is a derivative already
    told = ("derivatives of third order are not available", "third derivatives of a kernel that is not smooth")
    return call["mode"] == "grad2" and any(words in str(error) for words in told)


def _said(error: Exception) -> str:
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "gwf_fast" in f.filename or "kernels" in f.filename]
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}{where}"
