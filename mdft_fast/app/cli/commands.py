# SPDX-License-Identifier: Apache-2.0
"""The commands: arguments in, one call, a few lines out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mdft_fast.app.cli.checkpoint_commands import convert, inspect
from mdft_fast.app.cli.console import (
    Group,
    check_free,
    complain,
    say,
    show_codec_errors,
    show_table,
)
from mdft_fast.app.cli.method_commands import methods

app = typer.Typer(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replaces what is there.")]


def main() -> None:
    """Runs the command line of this process."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from mdft_fast import __version__

        say(f"mdft_fast {__version__}")
        raise typer.Exit


@app.callback()
def _mdft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Shows the version.")
    ] = False,
) -> None:
    """Makes one better model of a pool of fine-tuned ones, without labels.

    Start with `mdft demo`, which needs no files, or with `mdft init FOLDER` on your own
    checkpoints. Every command writes only where it says, and never over what is there unless asked.

    MDFT_DEBUG=1 shows tracebacks in place of one-line errors.
    """


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Holds the checkpoints.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recipe's file; FOLDER/recipe.yaml.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Writes a commented recipe for a folder of checkpoints.

    Looks for base*.safetensors, base*.pt, zeroshot.pt or a folder base*; the fine-tuned models
    beside it or in models/, as files, <Task>/finetuned.pt, folders of transformers or open_clip, or
    LoRA adapters; classifiers in heads/ or as head_<Task>.pt; npz files or folders of images in
    data/; and pool.json. Backbone and preprocessing are the base's, where it says them. What it
    cannot find out says CHANGE_ME.

    Example: mdft init checkpoints/
    """
    from mdft_fast.app.recipe import UNKNOWN, draft, parse, unknown_keys
    from mdft_fast.files import write_text

    target = output or folder / "recipe.yaml"
    check_free(target, overwrite)
    text = draft(folder, target)
    write_text(target, text)
    say(f"wrote {target}")
    count = len(list(unknown_keys(parse(text), "")))
    if count:
        say(f"look for {UNKNOWN} in it, {count} times; then: mdft run {target}")
    else:
        say(f"next: mdft run {target}")


@app.command()
def plan(
    recipe: RecipeFile,
    codecs: Annotated[
        bool, typer.Option("--all", help="Shows every codec, not the recipe's alone.")
    ] = False,
    assignments: Overrides = None,
) -> None:
    """Forecasts what a step takes in each memory mode, before anything is loaded.

    Runs one step of stage 1 on tensors without data and counts what is alive. The arrow marks what
    `mdft run` would do: the fastest mode that fits the recipe's memory.budget, or what is free.
    No arrow: nothing of what the recipe allows fits.

    Lists every input that is missing, and refuses models, heads and class names that `mdft run`
    would refuse, by headers alone.

    Example: mdft plan recipe.yaml --set memory.budget=4GB
    """
    from mdft_fast.app.cli.console import show_plan
    from mdft_fast.app.forecast import plan as forecast
    from mdft_fast.app.recipe import Recipe
    from mdft_fast.errors import MdftError

    planned = forecast(Recipe.load(recipe, assignments or []))
    show_plan(planned, every_codec=codecs)
    if not planned.fits:
        raise MdftError(planned.advice())


@app.command()
def pack(
    source: Annotated[
        Path, typer.Argument(metavar="RECIPE|POOL", help="A recipe, or a packed pool's folder.")
    ],
    folder: Annotated[Path, typer.Argument(help="The pool's new folder.")],
    codec: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16, int8 or int4; a recipe's memory.codec, a pool's own."),
    ] = None,
    all_tensors: Annotated[
        bool, typer.Option("--all", help="Shows the codec's error for every tensor.")
    ] = False,
    overwrite: Overwrite = False,
    assignments: Overrides = None,
) -> None:
    """Packs a recipe's checkpoints into one folder.

    Everything is checked once, and the folder opens at once. Writes pool.json, base.safetensors,
    tau.safetensors and heads/. A recipe then says `pool: {folder: ...}`, no base and models.

    Given a packed pool's folder, packs its task vectors again in another codec. Shows what the
    codec costs: the largest error in a tensor's task vectors, and that over the tensor's largest
    element. pool.json has it for every tensor.

    Example: mdft pack recipe.yaml packed/ --codec bf16

    Example: mdft pack packed/ smaller/ --codec int4
    """
    from mdft_fast.app.cli.actions import pack_pool

    pool = pack_pool(source, folder, codec, overwrite, assignments or ())
    say(pool.describe())
    show_codec_errors(pool.errors, all_tensors)
    say(f"wrote {folder}")


app.command()(inspect)
app.command()(convert)
app.command()(methods)


@app.command()
def run(
    recipe: RecipeFile,
    assignments: Overrides = None,
    output: Output = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Goes on with a stopped run of the same recipe.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Follows a recipe: learns, measures, writes a report.

    The run folder gets recipe.yaml, metrics.jsonl, result.json, report.md with pictures/,
    report.html, meta/ and specialized/<task>/. The state is saved after every step: after Ctrl-C
    or a crash, the same command with --resume goes on bit for bit.

    Example: mdft run recipe.yaml --set construct.steps=50 --output runs/short
    """
    from mdft_fast.app.cli.actions import run_recipe

    run_recipe(recipe, assignments or (), output, resume, quiet)


@app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A card (.json) or saved weights (.safetensors).")],
    recipe: RecipeFile,
    assignments: Overrides = None,
) -> None:
    """Measures a model on a recipe's labelled tasks.

    Prints a table and writes nothing.

    Example: mdft eval runs/real/specialized/mnist/card.json recipe.yaml
    """
    from mdft_fast.app.cli.actions import measure_model

    accuracy = measure_model(model, recipe, assignments or ())
    body = [[name, f"{100 * value:.1f}"] for name, value in accuracy.items()]
    if len(body) > 1:
        body.append(["average", f"{100 * sum(accuracy.values()) / len(accuracy):.1f}"])
    show_table(["task", "accuracy, %"], body)


@app.command()
def specialize(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    task: Annotated[str, typer.Option("--task", help="Which task to specialize for.")],
    assignments: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Specializes a run's meta-model to one more task.

    This is stage 2 alone. Starts from RUN/meta/card.json and writes
    RUN/specialized/<task>/card.json.

    Example: mdft specialize runs/real --task mnist --set specialize.steps=40
    """
    from mdft_fast.app.cli.actions import specialize_run

    card = specialize_run(folder, task, assignments or (), overwrite)
    say(f"wrote {card}")
    measure = shlex.join(["mdft", "eval", str(card), str(folder / "recipe.yaml")])
    say(f"the run's report shows the run as it was; this measures the new card: {measure}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A card (.json), or a run folder.")],
    to: Annotated[Path, typer.Option("--to", help="The weights' file, .safetensors.")],
    task: Annotated[
        str | None, typer.Option(help="With a run folder: the specialized model of this task.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The card's recipe; found beside it in a run folder.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Writes a model's merged weights as one file.

    A card holds a few KB of coefficients; with its pool it is a whole model: the recipe's heads and
    samples need not be there. The file has the backbone's own names and loads without mdft_fast.

    Example: mdft export runs/real --task mnist --to mnist.safetensors
    """
    from mdft_fast.app.cli.actions import export_model

    export_model(source, to, task, recipe, overwrite)
    say(f"wrote {to}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Writes a run's report again, from its results.

    Replaces RUN/report.md, RUN/pictures/ and RUN/report.html. Reads result.json, metrics.jsonl and
    recipe.yaml, and nothing else.

    Example: mdft report runs/real
    """
    from mdft_fast.app.cli.actions import report_run

    written = report_run(folder)
    say(f"report: {written}")
    say(f"page:   {written.with_suffix('.html')}")


@app.command()
def doctor() -> None:
    """Shows what this installation can do, and tests it.

    Versions, kernels, devices, extras, folders, and a self-test of one second. Writes nothing.
    Ends with code 1 if the operators' answers are wrong.
    """
    from mdft_fast.app.cli.doctor import findings, self_test

    for name, value in findings().items():
        say(f"{name:<12} {value}")
    good, words = self_test()
    say(f"{'self-test':<12} {words}")
    raise typer.Exit(0 if good else 1)


@app.command()
def demo(
    assignments: Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run folder; a number is added if taken.")
    ] = Path("mdft-demo"),
    quiet: Quiet = False,
) -> None:
    """Runs everything on a small pool that is built here.

    No download, a few minutes. The pool of eight small vision tasks is trained once and kept in
    the cache folder (`mdft doctor` shows where; MDFT_CACHE moves it).

    Example: mdft demo --set construct.steps=50
    """
    from mdft_fast.app.cli.actions import free_name, run_recipe
    from mdft_fast.app.demo import default_folder, ensure_pool, is_finished

    if not quiet and not is_finished(default_folder()):
        complain("building the demo's pool, once")
    pool = ensure_pool(progress=None if quiet else complain)
    run_recipe(pool / "recipe.yaml", assignments or (), free_name(output), False, quiet)
