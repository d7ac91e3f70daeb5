"""Calls end: whatever numbers they are given, and when the user asks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.long_calls import CALLS

ROOT = Path(__file__).parents[1]

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


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_long_calls(threads):
    """Each takes minutes at least; kernel_sum of 200,000 points used to hear a signal after 40 s, at its end."""
    command = [sys.executable, "-m", "tests.long_calls", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            out, errors = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
    heard = {name: float(seconds) for name, seconds in (line.split("\t") for line in out.splitlines())}
    assert list(heard) == list(CALLS), errors
    assert max(heard.values()) < 20, heard  # .1 s where nothing else runs


MEMORY = """
import resource, torch, gwf_fast as gwf
from gwf_fast.kernels.cpp import sliced as sliced_cpp
torch.set_num_threads({threads})
kernel = gwf.Gaussian(1.0)
directions = torch.eye(3)
x, y = torch.randn(8, 1, 3), torch.randn(8, 1_000_000, 3)
u, v = y[:, :200_000].contiguous(), y[:, 200_000:400_000].contiguous()
calls = {{
    "reduction": lambda: gwf.kernel_sum(x, y, kernel=kernel),
    "logsumexp": lambda: gwf.kernel_logsumexp(x, y, kernel=kernel),
    "sliced": lambda: sliced_cpp.sliced("wasserstein", u, v, directions, wanted=(False,) * 4).values,
}}
small = {{
    "reduction": lambda: gwf.kernel_sum(x, y[:, :50], kernel=kernel),
    "logsumexp": lambda: gwf.kernel_logsumexp(x, y[:, :50], kernel=kernel),
    "sliced": lambda: gwf.sliced_wasserstein2(y[:, :50], y[:, 50:100], directions=directions),
}}
for call in (*small.values(), calls["{name}"]):  # threads, their memory and libraries are there
    call()
size = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (size + (6 << 20), -1))
try:
    calls["{name}"]()
except MemoryError:
    print("MemoryError")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(bool(calls["{name}"]().isfinite().all()))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs the size of a process as Linux tells it")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["reduction", "logsumexp", "sliced"])
def test_no_memory_is_a_memory_error(name, threads):
    """An exception in a parallel region ended the process."""
    program = MEMORY.format(name=name, threads=threads)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "MemoryError\nTrue\n"), done.stderr


FORK = """
import os, torch, gwf_fast as gwf
torch.set_num_threads(2)
x = torch.randn(1500, 3)
calls = (
    lambda: gwf.kernel_sum(x, x, kernel=gwf.Gaussian(1.0)),
    lambda: gwf.kernel_gradient(x, x[1:], kernel=gwf.Gaussian(1.0)),
    lambda: gwf.ksd2(x, x, kernel=gwf.Gaussian(1.0)),
    lambda: gwf.drift.gmd(x, x[1:], temperature=1.0),
    lambda: gwf.sliced_wasserstein2(x, x[1:], directions=torch.eye(3)),
)
want = [call() for call in calls]
child = os.fork()
if child == 0:
    os._exit(0 if all(torch.equal(call(), value) for call, value in zip(calls, want)) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_runs_serially():
    """Its pool has no threads: waiting for them never ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
    assert out == "0\n", errors
