"""The command ``pathup``: its verbs, ``--version``, and what becomes of errors.

A verb's module is imported when the verb is used, so ``pathup --help`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pathup import __version__
from pathup.errors import PathUpError, unknown
from pathup.memory import ask_for_huge_pages
from pathup.peers import leave, lost_peer, say_last, say_what_ended_it

VERBS: dict[str, str] = {
    "tiles": "Cut labelled regions or annotated slides into tiles for training.",
    "train": "Train an autoencoder, a diffusion model or a tissue encoder on tiles.",
    "generate": "Synthesise large tissue images, or single tiles, from a trained model.",
    "view": "Look at a slide or a generated image in the browser, or at two side by side.",
    "evaluate": "Measure synthetic tiles and images beside real ones.",
    "baseline": "Train and draw from the systems that PathUp is compared with.",
    "classify": "Train and evaluate lesion classifiers, with and without synthetic tissue.",
    "experiment": "Train, draw and measure what the paper's tables compare.",
    "study": "Have pathologists read real and synthetic images blinded, in a browser.",
    "export": "Copy a trained model to pass on, in half the size if wanted.",
    "doctor": "Say what this machine has, what will be slow or missing, and what mends it.",
}
"""Verb to its line in ``pathup --help``, in the order in which they are used; each is `pathup.cli.VERB`."""


class LazyGroup(TyperGroup):
    """A group of verbs that are imported when they run and only listed before."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs that this installation has."""
        return [verb for verb in VERBS if importlib.util.find_spec(f"pathup.cli.{verb}") is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb as the help lists it: its name and line, nothing imported."""
        if cmd_name not in self.list_commands(ctx):
            return None
        line = typer.Typer(add_completion=False)
        line.command(cmd_name, short_help=VERBS[cmd_name])(lambda: None)
        return typer.main.get_command(line)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb to run, imported."""
        verbs = self.list_commands(ctx)
        if args[0] not in verbs:
            raise unknown("verb", args[0], verbs)
        return args[0], load_verb(args[0]), args[1:]

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; Ctrl-C ends it with exit code 130, as shells expect."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("pathup: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


def load_verb(verb: str) -> Any:
    """Import `pathup.cli.VERB` and make its command.

    The module has a Typer `app` (for a verb with verbs of its own) or a function of the verb's name.
    """
    module = importlib.import_module(f"pathup.cli.{verb}")
    app = getattr(module, "app", None)
    if not isinstance(app, typer.Typer):
        app = typer.Typer(add_completion=False)
        function = getattr(module, verb)
        parameters = inspect.signature(function).parameters.values()
        asks = any(parameter.default is inspect.Parameter.empty for parameter in parameters)
        app.command(verb, no_args_is_help=asks)(function)
    command = typer.main.get_command(app)
    command.name = verb
    return command


app = typer.Typer(
    cls=LazyGroup,
    name="pathup",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pathup {__version__}")
        raise typer.Exit()


@app.callback()
def pathup(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Synthesise large histopathology images, conditioned on lesion class and spatial level.

    The usual way: cut labelled regions or slides into tiles (pathup tiles), train on them (pathup train), grow large
    images from the trained model (pathup generate), and measure them beside real ones (pathup evaluate).
    'pathup VERB --help' tells more about each.
    """


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and exit code 1."""
    ask_for_huge_pages()
    say_what_ended_it()
    leave(_run())


def _run() -> int:
    try:
        app(prog_name="pathup")
    except SystemExit as ended:
        return int(ended.code or 0)
    except PathUpError as error:
        say_last(str(error))
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        say_last(f"{error.strerror or error}{place}")
    except RuntimeError as error:
        said = lost_peer(error)
        if said is None:
            raise
        say_last(said)
    return 1
