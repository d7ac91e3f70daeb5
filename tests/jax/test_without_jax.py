"""JAX is an option: without it one line says what to install, and nothing else asks for it."""

from __future__ import annotations

import subprocess
import sys


def test_without_jax_one_line_says_what_to_do() -> None:
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "import gwf_fast\n"
        "try:\n    import gwf_fast.jax\n"
        "except ImportError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "gwf_fast.jax needs JAX: pip install 'gwf_fast[jax]'"
