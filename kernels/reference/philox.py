"""Draws by integer arithmetic of PyTorch on any device: the numbers of csrc/random/philox.h, its counters there.

``counter`` is an int64 tensor (seed, iteration) where the draws are wanted. No function reads it on the host, so that a
CUDA graph that holds a call draws anew in each replay.

Philox4x32-10 (Salmon et al., SC 2011). Lane l of group g is the block of four words at the 128-bit counter
(16 g + l, 0, iteration, stream), low word first, under the 64-bit key seed. A draw takes the blocks of its stream in
order:

- integers below a bound, 32 a group: number 16 h + l (h = 0, 1) has the 64 bits word[2 h] 2^32 + word[2 h + 1] of lane
  l, times the bound, shifted right by 64.
- uniforms, 64 a group: number 16 w + l is (word[w] + 1/2) / 2^32 of lane l.
- normals, 64 a group: numbers 32 h + l and 32 h + 16 + l are r cos t and r sin t of lane l, with u the uniform of
  word[2 h], r = sqrt(-2 log u), and t = 2 pi word[2 h + 1] / 2^32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox_indices(counter: Tensor, stream: int, n: int, bound: int) -> Tensor:
    """n integers in 0 .. bound - 1, [n] int64."""
    words = _words(counter, stream, -(-n // 32)).view(-1, 2, 2, 16)
    high, low = words[:, :, 0].reshape(-1)[:n], words[:, :, 1].reshape(-1)[:n]
    b_high, b_low = bound >> 32, bound & _LOW
    # (high 2^32 + low)(b_high 2^32 + b_low) >> 64; products of two words of 32 bits, which fill the 64 of an int64
    middle = _high(low * b_low) + (high * b_low & _LOW) + (low * b_high & _LOW)
    return high * b_high + _high(high * b_low) + _high(low * b_high) + (middle >> 32)


def philox_rows(counter: Tensor, stream: int, n: int, pool: Tensor) -> Tensor:
    """The rows of a pool [N, D] at n such integers, [n, D]."""
    return pool[philox_indices(counter, stream, n, len(pool))]


def philox_uniforms(counter: Tensor, stream: int, n: int, dtype: torch.dtype) -> Tensor:
    """Uniform in (0, 1), [n]; from 32 bits each."""
    return _unit(_words(counter, stream, -(-n // 64)).view(-1)[:n]).to(dtype)


def philox_kept(counter: Tensor, stream: int, first: int, n: int, rate: float, dtype: torch.dtype) -> Tensor:
    """1 where uniforms first, ..., first + n - 1 are not below the rate, 0 elsewhere, [n]."""
    words = _words(counter, stream, -(-(first + n) // 64)).view(-1)[first : first + n]
    return (words >= threshold(rate)).to(dtype)


def philox_normals(counter: Tensor, stream: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Standard normals [n, d], those of the CPU to rounding."""
    words = _words(counter, stream, -(-n * d // 64)).view(-1, 2, 2, 16)
    radius = (-2 * _unit(words[:, :, 0]).to(dtype).double().log()).clamp(min=0).sqrt()
    turn = words[:, :, 1].double() * (2 * math.pi / 2**32)
    normals = torch.stack((radius * turn.cos(), radius * turn.sin()), 2)
    return normals.view(-1)[: n * d].view(n, d).to(dtype)


def threshold(rate: float) -> int:
    """The least word of 32 bits whose uniform, (word + 1/2) / 2^32, is not below a rate."""
    return math.ceil(rate * 2.0**32 - 0.5)


def _unit(words: Tensor) -> Tensor:
    return (words.double() + 0.5) * 2.0**-32


def _high(product: Tensor) -> Tensor:
    """The upper half of 64 bits, as they stand, without a sign."""
    return product >> 32 & _LOW


def _words(counter: Tensor, stream: int, groups: int) -> Tensor:
    """[groups, 4, 16] int64, each of 32 bits."""
    block = torch.arange(16 * groups, dtype=torch.int64, device=counter.device)
    w0, w1 = block & _LOW, block >> 32
    w2, w3 = (counter[1] & _LOW).expand_as(block), torch.full_like(block, stream)
    key0, key1 = counter[0] & _LOW, _high(counter[0])
    for _ in range(10):
        p, q = w0 * 0xD2511F53, w2 * 0xCD9E8D57
        w0, w1, w2, w3 = _high(q) ^ w1 ^ key0, q & _LOW, _high(p) ^ w3 ^ key1, p & _LOW
        key0, key1 = (key0 + 0x9E3779B9) & _LOW, (key1 + 0xBB67AE85) & _LOW
    return torch.stack((w0, w1, w2, w3)).view(4, groups, 16).transpose(0, 1).contiguous()
