"""Randomness of a run as a function of (seed, step): a state needs no generator bytes to be gone on with."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int, step: int | str, device: torch.device) -> Iterator[None]:
    """Torch's global generators, seeded for one step of a run and put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_step(seed, step)
        yield


def seed_step(seed: int, step: int | str) -> None:
    """Seed torch's global generators for one step of a run."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))
