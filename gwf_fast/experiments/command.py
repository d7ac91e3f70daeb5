"""``gwf-fast run EXPERIMENT``: one command an experiment, with the options that its settings declare."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from gwf_fast.errors import NonFiniteError
from gwf_fast.experiments import NAMES, find, runner
from gwf_fast.experiments.base import Experiment, spelled


class Experiments(TyperGroup):
    """The commands under ``gwf-fast run``; each is made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the registry."""
        return list(NAMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of an experiment; an unknown one ends in one line."""
        with one_line_errors():
            return _command(find(cmd_name))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The experiments, each with its summary and its options."""
        with formatter.section("Experiments"):
            formatter.write_dl([(name, _entry(find(name))) for name in NAMES], col_max=24)


runs = typer.Typer(
    cls=Experiments,
    subcommand_metavar="EXPERIMENT [OPTIONS]",
    help=(
        "Run an experiment; leaves samples, history, a figure and the configuration in the output folder.\n\n"
        "Every experiment takes --out, --resume, --seed and --threads beside its own options; "
        "'gwf-fast run EXPERIMENT --help' explains them."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _entry(experiment: Experiment) -> str:
    own = experiment.options().keys() - {"seed"}
    return f"{experiment.summary} [{' '.join(spelled(name) for name in experiment.options() if name in own)}]"


def _command(experiment: Experiment) -> Any:
    """A command whose options are the experiment's settings; only those that the user gave are passed on."""

    def command(context: typer.Context, out: Path | None, resume: bool, threads: int, **given: Any) -> None:
        with one_line_errors():
            if context.args:  # left over by the parser
                name = context.args[0].split("=")[0]
                if not name.startswith("-"):
                    raise ValueError(f"unexpected argument {name!r}; options begin with --")
                name = name.lstrip("-").replace("-", "_")
                raise ValueError(f"{name}: the experiment {experiment.name!r} has no such option")
            torch.set_num_threads(threads)
            given = {name: value for name, value in given.items() if value is not None}
            _run(experiment.name, given, out or Path("runs") / experiment.name, resume)

    parameters = [_parameter("context", typer.Context)]
    parameters += [_option(experiment, name) for name in experiment.options() if name != "seed"]
    parameters += [
        _parameter(
            "out", Annotated[Path | None, typer.Option(help=f"output folder; default runs/{experiment.name}")], None
        ),
        _parameter(
            "resume", Annotated[bool, typer.Option("--resume", help="go on with the run in the output folder")], False
        ),
        _option(experiment, "seed"),
        _parameter(
            "threads",
            Annotated[int, typer.Option(help="CPU threads; small networks gain little from a second", min=1)],
            1,
        ),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    lenient = {"allow_extra_args": True, "ignore_unknown_options": True}  # the errors are ours
    app.command(experiment.name, help=experiment.summary, context_settings=lenient)(command)
    return typer.main.get_command(app)


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(experiment: Experiment, name: str) -> inspect.Parameter:
    """One of the settings, None where the user does not give it."""
    field, kind = experiment.options()[name], experiment.types()[name]
    default = getattr(experiment.defaults, name)
    help = field.metadata["help"]
    if choices := field.metadata["choices"]:
        help += f": {', '.join(choices)}"
    if kind is bool:
        return _parameter(name, Annotated[bool | None, typer.Option(spelled(name), help=help)], None)
    if default not in ("", None):
        help += f"  [default: {default}]"
    return _parameter(name, Annotated[kind | None, typer.Option(help=help)], None)


def _run(name: str, given: dict[str, Any], out: Path, resume: bool) -> None:
    try:
        metrics = runner.run(name, given, out, resume=resume, say=typer.echo)
    except runner.Interrupted as interrupted:
        typer.echo(f"\nstopped; the last finished step is kept. Go on with: {interrupted}", err=True)
        raise typer.Exit(130) from None
    for key, value in metrics.items():
        typer.echo(f"{key.replace('_', ' ')}: {_shown(value)}")
    typer.echo(f"left in {out}: {', '.join(runner.artefacts(out))}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_shown(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can get wrong ends in one line and exit code 2, a diverged flow in exit code 1."""
    try:
        yield
    except NonFiniteError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.echo("error: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None
