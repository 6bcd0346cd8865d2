# SPDX-License-Identifier: Apache-2.0
"""What the commands take, what is checked before anything is loaded, and how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mdft_fast.app.cli.boundary import explain, is_usage
from mdft_fast.app.cli.console import complain
from mdft_fast.errors import MdftError
from mdft_fast.files import check_regular
from mdft_fast.terminal import STOPPED


class Group(TyperGroup):
    """Ends a command that raises with one line on standard error, no traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Takes ``--debug`` wherever it stands: before the command or among its arguments."""
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(arg for arg in args[:end] if arg != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; ``--debug`` lets errors through as they are."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("stopped")
            raise typer.Exit(STOPPED) from None
        except Exception as error:
            if is_usage(error) or ctx.params.get("debug"):
                raise
            complain(f"error: {explain(error)}")
            raise typer.Exit(1) from None


def readable(path: Path) -> Path:
    """Refuses a file that is not there, in a recipe's words, before anything is loaded for it."""
    check_regular(path)
    try:
        if not path.is_dir():
            path.open("rb").close()
    except OSError as error:
        raise MdftError(f"{path}: not readable: {error.strerror}") from None
    return path


def check_free(target: Path, overwrite: bool) -> None:
    """Refuses a folder as the name of a file to write, and a file that is there already."""
    if target.is_dir():
        raise MdftError(f"{target}: must be a file to write, got a folder")
    if target.exists() and not overwrite:
        raise MdftError(f"{target}: must not exist, got a file; --overwrite replaces it")


RecipeFile = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", callback=readable, help="The recipe, a YAML file."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Changes a key of the recipe, as in --set construct.steps=50. Repeatable.",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The run folder, in place of the recipe's.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")]
JsonLog = Annotated[
    bool,
    typer.Option("--json-log", help="Tells its progress as JSON, an object a line, on stderr."),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify", help="Compares a packed pool with its checksums before use."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replaces what is there.")]
Part = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of a file of several models the one under this key, or whose names begin so.",
    ),
]
WhichWeights = Annotated[
    str | None, typer.Option(help="ema or raw, where a file has both; else as its library does.")
]
