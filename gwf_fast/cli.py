"""The command line: ``gwf-fast run EXPERIMENT``, ``gwf-fast info``, ``gwf-fast bench``.

Heavy imports happen inside the commands, so that ``--help`` is quick. What a user can get wrong ends in one line
on the error stream and exit code 2; a diverged flow in exit code 1; Ctrl-C in 130.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Generative Wasserstein flows from the command line.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="digits, gmm, blr, data, aggregation or semicircle")],
    input: Annotated[str | None, typer.Option(help="data file: .npy, .csv or .mat (data, blr)")] = None,
    particles: Annotated[int | None, typer.Option(help="number of particles N")] = None,
    dim: Annotated[int | None, typer.Option(help="dimension D (gmm)")] = None,
    steps: Annotated[int | None, typer.Option(help="JKO steps")] = None,
    step_size: Annotated[float | None, typer.Option(help="JKO step size a")] = None,
    iterations: Annotated[int | None, typer.Option(help="training iterations a JKO step")] = None,
    batch_size: Annotated[int | None, typer.Option(help="samples an iteration")] = None,
    functional: Annotated[str | None, typer.Option(help="js, mmd or js+mmd (digits, data)")] = None,
    out: Annotated[Path | None, typer.Option(help="output folder; default runs/EXPERIMENT")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the output folder")] = False,
    seed: Annotated[int | None, typer.Option(help="seed of everything random; default 0")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; small networks gain little from a second", min=1)] = 1,
) -> None:
    """Run an experiment; leaves samples, maps, history, a figure and the configuration in the output folder."""
    with _one_line_errors():
        import torch

        from gwf_fast.experiments import find, runner

        find(experiment)  # before the folder gets a name
        torch.set_num_threads(threads)
        out = out or Path("runs") / experiment
        options = {
            "particles": particles,
            "steps": steps,
            "step_size": step_size,
            "iterations": iterations,
            "batch_size": batch_size,
            "seed": seed,
            "dim": dim,
            "functional": functional,
            "input": input,
        }
        given = {name: value for name, value in options.items() if value is not None}
        try:
            metrics = runner.run(experiment, given, out, resume=resume, say=typer.echo)
        except runner.Interrupted as interrupted:
            typer.echo(f"\nstopped; the last finished step is kept. Go on with: {interrupted}", err=True)
            raise typer.Exit(130) from None
        for name, value in metrics.items():
            typer.echo(f"{name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}")
        typer.echo(f"left in {out}: samples.npy, maps.safetensors, history.csv, figure.png, run.json")


@app.command()
def info() -> None:
    """Tell backends, instruction set, threads and versions."""
    with _one_line_errors():
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
    with _one_line_errors():
        from gwf_fast import selftest as cases

        raise typer.Exit(1 if cases.run(backend or None, device, match, typer.echo) else 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Run the benchmarks of a source checkout; further arguments are passed on to them."""
    with _one_line_errors():
        root = Path(__file__).resolve().parent.parent
        if not (root / "bench" / "__main__.py").is_file():
            raise ValueError("bench: the benchmarks are in the source repository, not in the installed package")
        command = [sys.executable, "-m", "bench", *context.args]
        raise typer.Exit(subprocess.run(command, cwd=root, check=False).returncode)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    from gwf_fast.errors import NonFiniteError

    try:
        yield
    except NonFiniteError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.echo("error: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Entry point of ``gwf-fast``."""
    app()
