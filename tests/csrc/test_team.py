"""csrc/team.h: the one place where threads are taken, exceptions leave, and interruptions are heard."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gwf_fast import _cpu

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
KINDS = ["plain", "thread", "address,undefined"]


def test_nobody_else_forms_a_team():
    """A second parallel region would end the process where an exception left it, and be deaf to Ctrl-C."""
    threading = re.compile(r"#\s*pragma omp(?! simd)|\bomp_\w+\(|<omp\.h>|std::(thread|jthread|async)\b")
    users = {
        str(path.relative_to(CSRC))
        for path in CSRC.rglob("*")
        if path.suffix in (".h", ".cpp") and threading.search(path.read_text())
    }
    assert users == {"team.cpp"}


@pytest.mark.skipif(shutil.which("objdump") is None or platform.machine() != "x86_64", reason="needs objdump, x86-64")
def test_shared_functions_run_on_any_processor():
    """Of the standard library's templates the linker takes the first that it meets, with the instructions it has."""
    table = subprocess.run(["nm", "-C", "-S", "--defined-only", _cpu.__file__], capture_output=True, text=True).stdout
    shared = re.compile(r"^(\w+) (\w+) [tTwW] ((?:void )?std::(?!.*avx).*)$", re.M)
    found = shared.findall(table)
    assert len(found) > 10
    wide = []
    for start, size, name in found:
        bounds = [f"--start-address=0x{start}", f"--stop-address={int(start, 16) + int(size, 16)}"]
        command = ["objdump", "-d", "--no-show-raw-insn", *bounds, _cpu.__file__]
        if re.search(r"\tv[a-z]\w+ ", subprocess.run(command, capture_output=True, text=True).stdout):
            wide.append(name)
    assert not wide


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("kind", KINDS)
def test_teams(kind, tmp_path):
    """Alone and under sanitizers: all is done once, what is thrown arrives, and nobody waits for ever."""
    flags = ["-std=c++20", "-O1", "-Icsrc"] + ([] if kind == "plain" else [f"-fsanitize={kind}", "-g1"])
    if kind == "address,undefined":
        flags.append("-fno-sanitize-recover=all")
    own = ["csrc/team.cpp", "tests/csrc/team.cpp"]
    if kind == "thread":  # with OpenMP's pragmas, and a run time that ThreadSanitizer understands
        subprocess.run(["g++", *flags, "-fopenmp", "-c", own[0], "-o", tmp_path / "team.o"], cwd=ROOT, check=True)
        own = [str(tmp_path / "team.o"), own[1], "tests/sanitize/threads.cpp"]
    else:
        flags.append("-fopenmp")
    program = tmp_path / "teams"
    built = subprocess.run(["g++", *flags, *own, "-o", program], cwd=ROOT, capture_output=True, text=True)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("the compiler has no such sanitizer")
    assert built.returncode == 0, built.stderr
    fixed = ["setarch", "-R"] if kind == "thread" else []  # the kernel's random addresses are not ThreadSanitizer's
    if fixed and (shutil.which("setarch") is None or subprocess.run([*fixed, "true"]).returncode):
        pytest.skip("addresses can't be fixed here, as ThreadSanitizer needs them")
    done = subprocess.run([*fixed, program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr
