"""Who serves what: the backends, and the operations with the modules that have them. A table to read."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
from typing import Literal, NamedTuple

import torch

_FLOATS = (torch.float32, torch.float64)
_HALVES = (torch.float16, torch.bfloat16)


BackendName = Literal[
    "cpp", "cuda", "triton", "triton:fp16x3", "triton:ieee", "triton:tf32x3", "triton:tf32", "keops", "torch"
]
"""What ``backend=`` takes: names of BACKENDS, with or without what its products are computed in."""


class Requirement(NamedTuple):
    """A module that a backend needs, the least version of its package, and what to do where it is missing or older."""

    module: str
    remedy: str
    floor: tuple[int, ...] = ()
    reason: str = ""  # what the floor is for

    def absence(self) -> str | None:
        """What is missing; None if nothing is."""
        if not importlib.util.find_spec(self.module):
            return f"needs {self.module}: {self.remedy}"
        found = _version(self.module) if self.floor else ""
        if _numbers(found, len(self.floor)) < self.floor:
            least = ".".join(map(str, self.floor))
            return f"needs {self.module} {least} or newer ({self.reason}), not {found}: {self.remedy}"
        return None


def _version(module: str) -> str:
    """Of the package with this name; builds for other GPUs have other names (pytorch-triton-rocm), but one module."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module(module).__version__)


def _numbers(version: str, count: int) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:count])


def interprets_triton() -> bool:
    """Whether Triton runs on CPU tensors, in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Backend(NamedTuple):
    """Functions for one kind of device, and what they serve."""

    name: str
    devices: tuple[str, ...] | None  # None: any
    dtypes: tuple[torch.dtype, ...]
    summary: str
    unbatched: bool = False  # whether its functions do without a batch dimension, and sums without channels
    formulas: bool = False  # whether it can evaluate a formula of the user's own
    requires: tuple[Requirement, ...] = ()
    capability: tuple[int, int] | None = None  # the oldest NVIDIA card
    derivatives: str = ""  # the backend that has the derivatives of its operations, where it has none
    precisions: tuple[str, ...] = ()  # what may follow its name, as in "triton:tf32"

    @property
    def module(self) -> str:
        """Where its pairwise functions are."""
        return f"gwf_fast.kernels.{_PAIRS_OF[self.name]}"

    @property
    def operations(self) -> tuple[str, ...]:
        """What it serves."""
        return tuple(name for name, row in OPERATIONS.items() if self.name in row.served_by)

    def refusal(
        self,
        device: str | torch.device,
        dtype: torch.dtype,
        formula: bool = False,
        operation: str | None = None,
        dim: int | None = None,
    ) -> str | None:
        """Every reason why this backend cannot serve a call of this kind; None if it can.

        Args:
            device: The tensors' device, or its type.
            dtype: Type of the tensors.
            formula: Whether the kernel is a formula of the user's own.
            operation: A key of OPERATIONS; None asks for all that the pairwise functions need.
            dim: Number of coordinates, or the widest layer; None is any.
        """
        reasons = (
            self._elsewhere(device),
            self.limit(dtype, formula, operation, dim),
            self._old(device),
            self.absence(),
        )
        return "; ".join(filter(None, reasons)) or None

    def missing(self, device: str | torch.device) -> str | None:
        """Why this backend runs nothing at all on a device; None if it does."""
        return "; ".join(filter(None, (self._elsewhere(device), self._old(device), self.absence()))) or None

    def _elsewhere(self, device: str | torch.device) -> str | None:
        kind = torch.device(device).type
        if self.devices is None or kind in self.devices or (self.name == "triton" and interprets_triton()):
            return None
        return f"serves {' and '.join(self.devices)} tensors, not {kind}"

    def limit(
        self, dtype: torch.dtype, formula: bool = False, operation: str | None = None, dim: int | None = None
    ) -> str | None:
        """As ``refusal``, whatever the device and the installation."""
        reasons = []
        if dtype not in self.dtypes:
            reasons.append(f"does not serve {dtype}, but {', '.join(str(known) for known in self.dtypes)}")
        if formula and not self.formulas:
            reasons.append("does not evaluate formulas of the user's own (gwf_fast.Radial); keops and torch do")
        served = [OPERATIONS[name].served_by.get(self.name) for name in needed(operation)]
        if None in served:
            reasons.append(f"serves {', '.join(self.operations)} only, not {operation or 'all that this needs'}")
        limits = [service.widest for service in served if service and service.widest]
        widest = min(limits) if limits else None  # min(default=) can't be traced
        if widest is not None and (dim or 0) > widest:
            reasons.append(f"serves at most {widest} coordinates, not {dim}")
        return "; ".join(reasons) or None

    def absence(self) -> str | None:
        """Why this backend is not in this installation; None if it is."""
        if not importlib.util.find_spec(self.module):
            return "not part of this version"
        return next(filter(None, (needed.absence() for needed in self.requires)), None)

    def _old(self, device: str | torch.device) -> str | None:
        """Whether there is an NVIDIA card that is too old."""
        where = torch.device(device)
        if self.capability is None or where.type != "cuda" or torch.version.hip or not torch.cuda.is_available():
            return None
        found = torch.cuda.get_device_capability(where)
        if found >= self.capability:
            return None
        card, (least, has) = torch.cuda.get_device_name(where), (f"{a}.{b}" for a, b in (self.capability, found))
        return f"needs compute capability {least}, and {card} has {has}: ask for backend='torch' there"


_CUDA_TORCH = Requirement("torch", "pip install 'torch>=2.9'", (2, 9), "what its launches are tested with")

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cpp", ("cpu",), _FLOATS, "compiled C++ for AVX-512, AVX2 or any CPU", unbatched=True),
        Backend(
            "cuda",
            ("cuda",),
            _FLOATS + _HALVES,
            "compiled CUDA: sums, gradients and interactions of at most 4 coordinates; their derivatives are Triton's",
            requires=(
                Requirement("gwf_fast._cuda", "install with GWF_FAST_CUDA=1 in the environment and nvcc on the path"),
            ),
            capability=(8, 0),
            derivatives="triton",
        ),
        Backend(
            "triton",
            ("cuda",),
            _FLOATS + _HALVES,
            "Triton",
            requires=(
                Requirement("triton", "pip install triton"),
                Requirement(
                    "triton", "pip install 'torch>=2.9', which brings it", (3, 5), "float64 tile products came then"
                ),
                _CUDA_TORCH,
            ),
            capability=(8, 0),
            precisions=("fp16x3", "ieee", "tf32x3", "tf32"),
        ),
        Backend(
            "keops",
            ("cpu", "cuda"),
            _FLOATS,
            "KeOps, for user-written formulas",
            formulas=True,
            requires=(Requirement("pykeops", "pip install pykeops"),),
        ),
        Backend("torch", None, _FLOATS + _HALVES, "plain PyTorch, chunked: the reference", formulas=True),
    )
}


class Service(NamedTuple):
    """Where a backend has the functions of an operation, under ``gwf_fast.kernels``, and up to what width."""

    module: str
    widest: int | None = None  # coordinates, or the widest layer; None: any number


class Operation(NamedTuple):
    """What can be asked of a backend.

    Attributes:
        meaning: For the documentation.
        functions: What a module that serves it has, under the names of the references.
        served_by: By backend.
        composed: Whether backends that lack it compute it from the pairwise reductions.
        extras: Functions that a module may have besides, which do the same in fewer launches.
    """

    meaning: str
    functions: tuple[str, ...]
    served_by: dict[str, Service]
    composed: bool = False
    extras: tuple[str, ...] = ()


_PAIRS_OF = {name: f"{name}.pairs" for name in ("cpp", "cuda", "triton", "keops")} | {"torch": "reference.pairs"}
_PAIRS = {name: Service(_PAIRS_OF[name]) for name in ("cpp", "triton", "keops", "torch")}
_FEW = {"cuda": Service("cuda.pairs", widest=4)}

OPERATIONS: dict[str, Operation] = {
    "sum": Operation("sum_j b_j k_ij", ("pair_sum",), _PAIRS | _FEW),
    "gradient": Operation("sum_j b_j grad k_ij", ("pair_gradient",), _PAIRS | _FEW),
    "sum_gradient": Operation("both in one pass", ("pair_sum_gradient",), _PAIRS),
    "logsumexp": Operation("log sum_j e^beta_j k_ij", ("pair_logsumexp",), _PAIRS),
    "average": Operation("means with weights e^beta_j k_ij", ("pair_average",), _PAIRS),
    "jet": Operation("derivatives of all of these", ("pair_jet",), _PAIRS),
    "interaction": Operation(
        "velocities, energies and steps of particles",
        ("pair_sum", "pair_gradient"),
        _PAIRS | _FEW,
        extras=("interaction_velocity", "interaction_energy", "forward_step"),
    ),
    "mmd": Operation(
        "the squared MMD with its gradients in one launch",
        ("mmd_rows",),
        {"triton": Service("triton.pairs")},
        composed=True,
    ),
    "stein": Operation(
        "the kernel Stein discrepancy",
        ("stein_sum", "stein_sum_gradients"),
        {"cpp": Service("cpp.pairs"), "triton": Service("triton.stein"), "torch": Service("reference.stein")},
    ),
    "svgd": Operation(
        "the direction of SVGD in one launch",
        ("svgd_sum",),
        {"triton": Service("triton.stein")},
        composed=True,
    ),
    "drift": Operation(
        "the drift of Algorithm 2, at several temperatures",
        ("forces", "total_distances"),
        {"cpp": Service("cpp.drift"), "triton": Service("triton.drift"), "torch": Service("reference.drift")},
    ),
    "transport": Operation(
        "all sweeps of Sinkhorn for a batch of small problems in one launch",
        ("solve_small", "fits"),
        {"cpp": Service("cpp.transport"), "triton": Service("triton.transport")},
        composed=True,
    ),
    "sliced": Operation(
        "discrepancies by sorted projections",
        ("sliced",),
        {"cpp": Service("cpp.sliced"), "torch": Service("reference.sliced")},
    ),
    "nearest": Operation(
        "the nearest sources",
        ("nearest",),
        {"cpp": Service("cpp.nearest"), "torch": Service("reference.nearest")},
    ),
    "mlp": Operation(
        "perceptrons and their first derivatives",
        ("mlp_forward", "mlp_backward"),
        {
            "cpp": Service("cpp.mlp", widest=512),
            "triton": Service("triton.mlp", widest=128),
            "torch": Service("reference.mlp"),
        },
    ),
    "mlp_second": Operation(
        "second derivatives of perceptrons",
        ("mlp_second",),
        {"cpp": Service("cpp.mlp", widest=512), "torch": Service("reference.mlp")},
    ),
    "mlp_objective": Operation(
        "a critic's objective and its gradients in one pass",
        ("mlp_objective",),
        {"cpp": Service("cpp.mlp", widest=512)},
        composed=True,
    ),
}
"""What is computed, by whom. A backend that gains an operation is entered here, and everything else follows: the choice
(dispatch.py), what ``gwf-fast selftest`` runs, and the table of docs/gpu.md."""

REDUCTIONS = ("sum", "gradient", "sum_gradient", "logsumexp", "average", "jet")
"""What a call that names no operation may need."""


COMPOSED_OF = {"mmd": REDUCTIONS, "svgd": ("sum", "gradient"), "transport": ("logsumexp",), "mlp_objective": ("mlp",)}
"""What backends compute an operation from that they have not as one."""


def needed(operation: str | None) -> tuple[str, ...]:
    """The operations that serving one takes; None is any pairwise function, with its derivatives."""
    return REDUCTIONS if operation is None else COMPOSED_OF.get(operation, (operation,))


AUTOMATIC: dict[str, tuple[BackendName, ...]] = {
    "interaction": ("cpp", "cuda", "triton", "torch"),
    "formula": ("keops", "torch"),
    "": ("cpp", "triton", "torch"),
}
"""Who is asked in turn, by operation: the first that can serve does."""


COMPILED = {"cpu": "cpp", "cuda": "triton"}
"""The compiled backend of a device, for functions that leave no choice."""
