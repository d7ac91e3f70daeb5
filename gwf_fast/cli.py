"""The command line: ``gwf-fast run EXPERIMENT``, ``gwf-fast info``, ``gwf-fast bench``.

What a user can get wrong ends in one line on the error stream and exit code 2; a diverged flow in exit code 1; Ctrl-C
in 130. The commands under ``run`` are in ``gwf_fast.experiments.command``.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from gwf_fast.experiments.command import one_line_errors, runs

app = typer.Typer(
    help="Generative Wasserstein flows from the command line.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(runs, name="run")


@app.command()
def info() -> None:
    """Tell backends, instruction set, threads and versions."""
    with one_line_errors():
        import torch

        import gwf_fast
        from gwf_fast.experiments.runner import versions

        for name, value in versions().items():
            typer.echo(f"{name:14s} {value}")
        typer.echo(f"{'python':14s} {platform.python_version()} on {platform.machine()}")
        typer.echo(f"{'torch CPU':14s} {torch.backends.cpu.get_cpu_capability()}")
        typer.echo(f"{'threads':14s} {torch.get_num_threads()} of {os.cpu_count()} cores")
        typer.echo(f"{'GPU':14s} {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
        typer.echo("backends of the pairwise reductions:")
        for name, state in gwf_fast.backends().items():
            typer.echo(f"  {name:12s} {state}")


@app.command()
def selftest(
    backend: Annotated[list[str] | None, typer.Option(help="only this one; may be repeated")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: cuda where there is a device")] = None,
    match: Annotated[str, typer.Option(help="only cases whose name contains this")] = "",
) -> None:
    """Hold every backend present to the float64 reference; exit code 1 where one fails."""
    with one_line_errors():
        from gwf_fast.selftest import run as selftest_run

        raise typer.Exit(1 if selftest_run.run(backend or None, device, match, typer.echo) else 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Run the benchmarks of a source checkout; further arguments are passed on to them."""
    with one_line_errors():
        root = Path(__file__).resolve().parent.parent
        if not (root / "bench" / "__main__.py").is_file():
            raise ValueError("bench: the benchmarks are in the source repository, not in the installed package")
        command = [sys.executable, "-m", "bench", *context.args]
        raise typer.Exit(subprocess.run(command, cwd=root, check=False).returncode)


def main() -> None:
    """Entry point of ``gwf-fast``."""
    app()
