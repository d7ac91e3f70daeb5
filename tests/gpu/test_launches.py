"""What a call asks of a GPU: kernels of ours, and operations of torch around them that would be kernels there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.packing import Pairs
from gwf_fast.selftest.reductions import Case

ROOT = Path(__file__).resolve().parents[2]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

SCRIPT = """
import json, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from bench import record
from gwf_fast.kernels.triton import pairs as backend, launch
from gwf_fast.selftest.reductions import Case

# operations that only make or look at memory
NOTHING = {"empty", "view", "_unsafe_view", "slice", "select", "split", "transpose", "as_strided", "detach", "alias",
           "unbind", "expand", "unsqueeze", "squeeze", "permute", "split_with_sizes"}

class Counted(TorchDispatchMode):
    names = []
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))

def counted(operation, dim, is_ragged):
    x, y, w = torch.randn(1, 1000, dim), torch.randn(1, 1000, dim), torch.rand(1, 1000)
    arguments = {
        "sum": (x, y, w[..., None]), "gradient": (x, y, w), "sum_gradient": (x, y, w), "logsumexp": (x, y, w.log()),
        "average": (x, y, None, None), "mmd": (x, y, w, w, torch.ones(1, 2)),
    }[operation]
    lengths = {"x_lengths": torch.tensor([900]), "y_lengths": torch.tensor([800])} if is_ragged else {}
    function = backend.mmd_rows if operation == "mmd" else getattr(backend, f"pair_{operation}")
    call = lambda: function(*arguments, Case("sum").spec, **lengths)
    record.launches(call)  # what is kept from call to call is there then
    Counted.names = []
    with Counted():
        kernels = record.launches(call)
    return [found.kernel.__name__ for found in kernels] + [name for name in Counted.names if name not in NOTHING]

rows = []
for split in (132, 1):
    launch.multiprocessors = lambda device: split
    for operation in ("sum", "gradient", "sum_gradient", "logsumexp", "average", "mmd"):
        for dim in (3, 16):
            for is_ragged in (False, True)[: 1 if operation == "mmd" else 2]:
                rows.append((split, operation, dim, is_ragged, counted(operation, dim, is_ragged)))
print(json.dumps(rows))
"""


@pytest.mark.skipif(not (ROOT / "bench" / "record.py").is_file(), reason="needs the source tree")
def test_launches_of_a_call():
    """Few coordinates: packing, a sweep, and a combination of ranges. Many: also the radius, which starts at 0, and a
    launch for clouds that are far, of which one ends at once; the MMD sweeps four times."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    for split, operation, dim, is_ragged, names in json.loads(done.stdout):
        most = {3: 2, 16: 4}[dim] + (split > 1)
        if operation == "mmd" and dim == 16:
            most = 30
        assert len(names) <= most, (split, operation, dim, is_ragged, names)


def test_numbers_are_kept_and_the_oldest_go_first(monkeypatch):
    monkeypatch.setattr(launch, "_KEPT", {})
    monkeypatch.setattr(launch, "_MOST_KEPT", 3)
    device = torch.device("cpu")
    first = launch.numbers((0.5,), torch.float64, device)
    assert first.tolist() == [0.5] and first.dtype == torch.float64
    for k in range(2):
        launch.numbers((float(k),), torch.float64, device)
    assert launch.numbers((0.5,), torch.float64, device) is first  # used again: the last to go
    launch.numbers((7.0,), torch.float64, device)
    assert launch.numbers((0.5,), torch.float64, device) is first
    assert launch.numbers((0.5,), torch.float32, device) is not first


def test_what_a_graph_reads_is_never_let_go(monkeypatch):
    kept, pinned = {}, set()
    monkeypatch.setattr(launch, "_KEPT", kept)
    monkeypatch.setattr(launch, "_IN_GRAPHS", pinned)
    monkeypatch.setattr(launch, "_MOST_KEPT", 2)
    device = torch.device("cpu")
    graphs = launch.numbers((1.0,), torch.float32, device)
    pinned.add(((1.0,), torch.float32, device))
    for k in range(10):
        launch.numbers((float(k + 2),), torch.float32, device)
    assert launch.numbers((1.0,), torch.float32, device) is graphs
    assert len(kept) <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_centre_is_amid_the_columns_and_minds_no_outlier(dtype):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, 500, 3, dtype=dtype, generator=generator) + 1000.0
    y[0, ::70] = 1e9
    y[1, 0] = float("inf")
    y[2, 0] = float("nan")
    pairs = Pairs(y.to(DEVICE), y.to(DEVICE), Case("sum").spec, (64, 32), None, None)
    assert (pairs.centre - 1000).abs().max() < 5
