"""Calls end: whatever numbers they are given, and when the user asks."""

import subprocess
import sys

SPOILED = """
import itertools, math, torch, gwf_fast as gwf
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
directions = torch.nn.functional.normalize(torch.randn(3, 2, generator=generator), dim=-1)
bads = (math.nan, -math.nan, math.inf, -math.inf)
for side, bad, exponent, weighted in itertools.product((0, 1), bads, (0.5, 1.0, 1.5), (False, True)):
    sets = [torch.randn(n, 2, generator=generator) for n in (20, 30)]
    sets[side][7, 1] = bad
    x, y = (points.requires_grad_() for points in sets)
    weights = {"x_weights": torch.rand(20, generator=generator)} if weighted else {}
    value = gwf.sliced_energy_distance(x, y, exponent=exponent, directions=directions, **weights)
    assert not value.isfinite(), (bad, exponent, value)
    value.backward()
    gwf.sliced_wasserstein2(x, y, directions=directions, **weights).backward()
print("ended")
"""


def test_sliced_distances_of_nan_end():
    """NaN in y made the exponents other than 1 wait for ever, deaf to Ctrl-C."""
    done = subprocess.run([sys.executable, "-c", SPOILED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ended\n", done.stderr
