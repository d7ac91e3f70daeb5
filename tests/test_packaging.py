"""What the wheel and the source archive carry."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.so", "*.egg-info", "build", "dist", "demo", "runs"
)


def pip_wheel(source: Path, out: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "-w", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    (wheel,) = out.glob("gwf_fast-*.whl")
    return wheel


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The source archive of a copy of the tree: in the tree itself setuptools would read leftovers of old builds."""
    copy = tmp_path_factory.mktemp("sdist") / "gwf_fast"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCE)
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(copy.parent)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=copy, timeout=120)
    (path,) = copy.parent.glob("gwf_fast-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def unpacked(archive) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent / "unpacked", filter="data")
    (source,) = (archive.parent / "unpacked").iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory) -> set[str]:
    """Names in the wheel that the source archive builds; objects compiled earlier are taken over where current."""
    if (ROOT / "build" / "objects").is_dir():
        shutil.copytree(ROOT / "build" / "objects", unpacked / "build" / "objects")
    out = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(pip_wheel(unpacked, out, "--no-build-isolation")) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def test_the_wheel_carries_every_module_and_nothing_else(wheel):
    expected = {str(p.relative_to(ROOT)) for p in (ROOT / "gwf_fast").rglob("*.py")}
    expected |= {f"gwf_fast/{p.relative_to(ROOT)}" for p in (ROOT / "kernels").rglob("*.py")}
    assert {name for name in wheel if name.endswith(".py")} == expected
    assert {name.split("/")[0] for name in wheel} == {"gwf_fast"}


def test_the_wheel_carries_types_and_the_extension(wheel):
    assert "gwf_fast/py.typed" in wheel
    assert f"gwf_fast/_cpu{EXTENSION_SUFFIXES[0]}" in wheel


def test_every_folder_with_modules_is_a_package():
    # find_packages drops a folder without __init__.py silently.
    for top in ("gwf_fast", "kernels"):
        folders = {p.parent for p in (ROOT / top).rglob("*.py")}
        assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []


def test_the_source_archive_builds_from_what_it_carries(unpacked):
    carried = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    for folder in ("csrc", "kernels", "gwf_fast"):
        here = {
            str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".py")
        }
        assert here
        assert here - carried == set()
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= carried


@pytest.mark.slow
def test_the_wheel_builds_in_isolation_within_two_minutes(unpacked, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(unpacked, source, ignore=shutil.ignore_patterns("build"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pip_wheel(source, tmp_path / "out")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which doesn't depend on what else the machine does: two minutes even on one core.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120
