"""Whatever befalls a run - a kill, a full disk, a rival, a damaged file - it ends bit for bit alike, or in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_runs.py")
KINDS = ("flow", "drifting", "command")


def befall(folder, kind, how, count):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(SCRIPT), kind, how, str(folder), str(count)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("kind", "stride"),
    [("flow", 9), ("drifting", 15), ("command", 45)]
    + [pytest.param(kind, 1, marks=pytest.mark.slow) for kind in KINDS],
)
def test_killed_at_a_write(tmp_path, kind, stride):
    outcome, _ = befall(tmp_path, kind, "every_write", stride)
    assert outcome["kills"] > 25 / stride


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(tmp_path, kind):
    outcome, _ = befall(tmp_path, kind, "random_moments", 100)
    assert outcome["kills"] >= 100 and outcome["killed_more_than_once"] > 3


@pytest.mark.parametrize(
    ("kind", "count"), [("flow", 4), *(pytest.param(kind, 50, marks=pytest.mark.slow) for kind in KINDS)]
)
def test_disk_full(tmp_path, kind, count):
    outcome, lines = befall(tmp_path, kind, "full_disk", count)
    assert outcome["refused"] > count / 2
    assert "OSError: [Errno 27] File too large: '" in lines and ".safetensors'" in lines


@pytest.mark.parametrize("kind", ["flow", "drifting", pytest.param("command", marks=pytest.mark.slow)])
def test_read_only_folder(tmp_path, kind):
    for parent in (tmp_path, *tmp_path.parents[:2]):  # somebody else's, who has to get there
        parent.chmod(0o755)
    _, lines = befall(tmp_path, kind, "read_only", 1)
    assert lines.count("PermissionError: [Errno 13] Permission denied: '") == 2


@pytest.mark.parametrize(
    ("kind", "count"), [("flow", 3), *(pytest.param(kind, 25, marks=pytest.mark.slow) for kind in KINDS)]
)
def test_two_writers(tmp_path, kind, count):
    outcome, lines = befall(tmp_path, kind, "two_writers", count)
    assert outcome["refused"] > 0
    assert "is being written by another run (process " in lines


@pytest.mark.parametrize(
    ("kind", "count"), [("flow", 8), ("drifting", 6), *(pytest.param(k, 100, marks=pytest.mark.slow) for k in KINDS)]
)
def test_damaged_files(tmp_path, kind, count):
    outcome, lines = befall(tmp_path, kind, "damaged", count)
    assert outcome["refused"] > count / 2
    assert "is damaged: its content is not what was written" in lines
