"""What a card can do at most: published rates per multiprocessor and cycle, times what the device says of itself."""

from __future__ import annotations

import dataclasses
import subprocess

import torch

PER_SM = {  # compute capability: multiply-adds a cycle in float32 and float64, and TF32 ones on tensor cores (dense)
    (8, 0): (64, 32, 512),  # A100
    (8, 6): (128, 2, 128),  # GeForce 30, A10, A40
    (8, 9): (128, 2, 128),  # GeForce 40, L4, L40
    (9, 0): (128, 64, 1024),  # H100, H200
    (10, 0): (128, 64, 2048),  # B200
    (12, 0): (128, 2, 128),  # GeForce 50
}
"""From the architecture white papers; bfloat16 is twice TF32."""

EXPONENTIALS = 16
"""Results of the special function unit (MUFU) a cycle and multiprocessor, on all of these."""

BYTES = {
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100": 3.35e12,
    "A100": 1.94e12,
    "B200": 8.0e12,
    "L40": 864e9,
    "L4": 300e9,
}
"""Bytes a second of the memory, by a part of the card's name, where the device does not tell."""


@dataclasses.dataclass(frozen=True)
class Card:
    """Peaks a second; None where they aren't known.

    Attributes:
        name: Of the card.
        facts: What was read from the device.
        fma: Multiply-adds in float32.
        fma64: The same in float64.
        tensor: Multiply-adds in TF32 on tensor cores.
        mufu: Exponentials, roots and logarithms.
        bytes: Of memory traffic.
    """

    name: str
    facts: dict[str, object]
    fma: float | None
    fma64: float | None
    tensor: float | None
    mufu: float | None
    bytes: float | None

    @classmethod
    def of(cls, device: torch.device) -> Card:
        """The card of a device; one without peaks for the CPU."""
        if device.type != "cuda":
            return cls("no GPU: a dry run", {}, None, None, None, None, None)
        properties = torch.cuda.get_device_properties(device)
        facts: dict[str, object] = {}
        facts |= (said := clocks(device))
        capability, count = (properties.major, properties.minor), properties.multi_processor_count
        hertz = 1e6 * float(said.get("clocks.max.sm MHz") or 0) or 1e3 * getattr(properties, "clock_rate", 0)
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": count,
            "memory GiB": round(properties.total_memory / 2**30, 1),
            "peak clock MHz": hertz / 1e6,
        }
        known = PER_SM.get(capability)
        single, double, tensor = (rate * count * hertz for rate in known) if known and hertz else (None, None, None)
        # the memory's clock in kHz, two transfers a cycle
        wide = getattr(properties, "memory_bus_width", 0) / 8 * 2e3 * getattr(properties, "memory_clock_rate", 0)
        rate = wide or next((value for name, value in BYTES.items() if name in properties.name), None)
        mufu = EXPONENTIALS * count * hertz if known and hertz else None
        return cls(properties.name, facts, single, double, tensor, mufu, rate)


def clocks(device: torch.device) -> dict[str, str]:
    """What nvidia-smi says of the card, clocks now and at most among it; empty where there is no such tool."""
    fields = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
    query = [
        "nvidia-smi",
        f"--id={device.index or 0}",
        f"--query-gpu={','.join(fields)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = dict(zip(fields, (value.strip() for value in text.split(","))))
    return {f"{name} MHz" if name.startswith("clocks") else name: value for name, value in found.items()}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a call must do at least.

    Attributes:
        pairs: Of points.
        fma: Multiply-adds (or additions, products) in ordinary arithmetic, of the whole call.
        tensor: Multiply-adds that tensor cores may do, in TF32; one float32 product is three of these.
        mufu: Exponentials and roots.
        bytes: Read and written once.
        double: Whether ``fma`` is in float64.
    """

    pairs: float = 0.0
    fma: float = 0.0
    tensor: float = 0.0
    mufu: float = 0.0
    bytes: float = 0.0
    double: bool = False

    def seconds(self, card: Card) -> dict[str, float]:
        """The least time of each resource, where its peak is known."""
        peaks = {
            "FMA": card.fma64 if self.double else card.fma,
            "tensor": card.tensor,
            "MUFU": card.mufu,
            "bytes": card.bytes,
        }
        amounts = {"FMA": self.fma, "tensor": self.tensor, "MUFU": self.mufu, "bytes": self.bytes}
        return {name: amounts[name] / peak for name, peak in peaks.items() if peak and amounts[name]}

    def shares(self, card: Card, seconds: float) -> dict[str, object]:
        """How near a time is to the bound: each resource's share, and that of the one that binds."""
        least = self.seconds(card)
        if not least:
            return {}
        binding = max(least, key=least.__getitem__)
        return {
            "shares": {name: value / seconds for name, value in least.items()},
            "bound": binding,
            "share_of_bound": least[binding] / seconds,
        }


def reduction(operation: str, kernel: str, n: int, m: int, dim: int, channels: int = 1) -> Work:
    """The work of a pairwise reduction in float32.

    Differences take a subtraction and a multiply-add a coordinate, on the FMA pipes. A smooth kernel of more than four
    coordinates may take products instead, at 3xTF32, and so may the second product (gradient, average, channels).
    """
    outputs = {"sum": channels, "gradient": dim, "logsumexp": 1, "average": dim}[operation]
    pairs = float(n) * m
    fma, tensor = 0.0, 0.0
    if dim <= 4 or kernel == "Laplace":
        fma += 2 * dim
    else:
        tensor += 3 * dim
        fma += 2  # the norms
    if outputs <= 4:
        fma += outputs
    else:
        tensor += 3 * outputs
    mufu = 2.0 if kernel == "Laplace" else 1.0
    return Work(pairs, pairs * fma, pairs * tensor, pairs * mufu, 4.0 * (n * dim + m * dim + m + n * outputs))
