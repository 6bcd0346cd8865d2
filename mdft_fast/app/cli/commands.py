# SPDX-License-Identifier: Apache-2.0
"""The commands: arguments in, one action, a few lines out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdft_fast.app.cli import caching
from mdft_fast.app.cli.arguments import (
    Group,
    JsonLog,
    Output,
    Overrides,
    Overwrite,
    Part,
    Quiet,
    RecipeFile,
    RunFolder,
    Verify,
    WhichWeights,
    check_free,
    readable,
)
from mdft_fast.app.cli.console import say, show_codec_errors, show_table
from mdft_fast.cache import KINDS
from mdft_fast.errors import MdftError, nearest
from mdft_fast.late_imports import LateModule
from mdft_fast.version import __version__

if TYPE_CHECKING:
    from mdft_fast import checkpoints
    from mdft_fast.app.cli import actions
    from mdft_fast.app.cli import doctor as installation
else:  # They load torch, which `--help`, a wrong option and a missing file do not need.
    checkpoints = LateModule("mdft_fast.checkpoints")
    actions = LateModule("mdft_fast.app.cli.actions")
    installation = LateModule("mdft_fast.app.cli.doctor")


app = typer.Typer(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        say(f"mdft_fast {__version__}")
        raise typer.Exit


@app.callback()
def _mdft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Shows the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="MDFT_DEBUG", help="Shows an error's whole traceback."),
    ] = False,
) -> None:
    """Makes one better model of a pool of fine-tuned ones, without labels.

    Start with `mdft demo`, which needs no files, or with `mdft init FOLDER` on your own
    checkpoints. Every command writes only where it says, and never over what is there unless asked.

    An error is one line and exit code 1; --debug, or MDFT_DEBUG=1, shows its traceback.
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
    target = output or folder / "recipe.yaml"
    check_free(target, overwrite)
    unknown = actions.draft_recipe(folder, target)
    say(f"wrote {target}")
    if unknown:
        say(f"look for CHANGE_ME in it, {unknown} times; then: mdft run {target}")
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
    actions.plan_recipe(recipe, assignments or (), codecs)


@app.command()
def pack(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE|POOL", callback=readable, help="A recipe, or a packed pool's folder."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="The pool's new folder.")],
    codec: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16, int8 or int4; a recipe's memory.codec, a pool's own."),
    ] = None,
    all_tensors: Annotated[
        bool, typer.Option("--all", help="Shows the codec's error for every tensor.")
    ] = False,
    start: Annotated[
        bool, typer.Option("--start", help="Packs the merge that the recipe starts from, too.")
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
    pool = actions.pack_pool(source, folder, codec, overwrite, start, assignments or ())
    say(pool.describe())
    show_codec_errors(pool.errors, all_tensors)
    say(f"wrote {folder}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, head, adapter or packed pool.")],
    every: Annotated[bool, typer.Option("--all", help="Lists every tensor.")] = False,
    part: Part = None,
    weights: WhichWeights = None,
) -> None:
    """Tells what a file or folder is.

    Format, tensors, dtypes, bytes, a prefix of all names, what it says about activation and image
    size, and what would be left out, with why. Nothing that the file holds is executed.

    Example: mdft inspect checkpoints/ViT-B-32/zeroshot.pt
    """
    say(actions.describe_file(path, every, checkpoints.Choice(weights, part)))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint, head or LoRA adapter.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The new .safetensors file.")],
    base: Annotated[
        Path | None, typer.Option(help="The pre-trained model that an adapter is added to.")
    ] = None,
    part: Part = None,
    weights: WhichWeights = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Rounds to float32, float16, bfloat16 or float64; else as they are."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leaves out tensors by name, with * and ?."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Writes a checkpoint as one safetensors file.

    Reads whatever `mdft inspect` knows: torch files, whole pickled modules, shards, folders of
    transformers and open_clip, LoRA adapters with --base, heads. Names stay as they are but for
    what wrapping modules put into them, and what the source says about itself is kept.

    Example: mdft convert checkpoints/ViT-B-32/MNIST/finetuned.pt models/mnist.safetensors
    """
    check_free(target, overwrite)
    choice = checkpoints.Choice(weights, part)
    state = checkpoints.convert(
        source, target, base=base, overwrite=overwrite, choice=choice, dtype=dtype,
        ignore=ignore or (),
    )  # fmt: skip
    say(f"{state.format}: {len(state.tensors)} tensors")
    for name, why in state.left_out.items():
        say(f"left out: {name}: {why}")
    for note in state.notes:
        say(f"note: {note}")
    say(f"wrote {target}")


@app.command()
def methods(
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain",
            metavar="RECIPE",
            callback=lambda path: path and readable(path),
            help="Shows what methods that look at inputs find in this recipe's backbone.",
        ),
    ] = None,
    assignments: Overrides = None,
) -> None:
    """Lists what can be made of a pool without learning.

    For each method its kind, what it does, what it needs, where it is from, and its fields with
    their defaults. A recipe names transforms, which act in this order, before λ is learned:

    transform: [{ties: {density: 0.2}}, lines]

    With --explain, what a walk finds in a recipe's backbone: its linear layers in the order of
    execution, which of them write to the residual stream, which positions count, and what gets the
    mean, with why. Equal blocks are described once. Measured on random inputs in the base.

    Example: mdft methods --explain recipe.yaml
    """
    if explain is None and assignments:
        raise MdftError("--set: is for --explain RECIPE, got no recipe")
    if explain is None:
        actions.show_methods()
    else:
        say(actions.explain_recipe(explain, assignments or ()))


@app.command()
def run(
    recipe: RecipeFile,
    assignments: Overrides = None,
    output: Output = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Goes on with a stopped run of the same recipe.")
    ] = False,
    quiet: Quiet = False,
    json_log: JsonLog = False,
    verify: Verify = True,
) -> None:
    """Follows a recipe: learns, measures, writes a report.

    The run folder gets recipe.yaml, metrics.jsonl and metrics.csv, result.json, report.md,
    report.html, meta/ and specialized/<task>/. The state is saved after every step: after Ctrl-C
    or a crash, the same command with --resume goes on bit for bit.

    Example: mdft run recipe.yaml --set construct.steps=50 --output runs/short
    """
    actions.run_recipe(recipe, assignments or (), output, resume, quiet, json_log, verify)


@app.command()
def cache(
    empty: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Removes the entries of a kind, or all. Repeatable."),
    ] = None,
) -> None:
    """Lists what can be made again, and what it takes; removes it where asked.

    Decoded images, heads, labels of test sets and what models said of samples: a run that was
    stopped or is repeated finds them. What was used longest ago goes once they take more than 50
    GB; MDFT_CACHE_GB names another size, MDFT_CACHE another folder.

    Example: mdft cache --empty images
    """
    if not empty:
        caching.list_cache()
        return
    for kind in empty:
        if kind not in (*KINDS, "all"):
            known = [*KINDS, "all"]
            raise MdftError(f"--empty: must be one of {known}, got {kind!r}{nearest(kind, known)}")
    caching.empty_cache(list(KINDS) if "all" in empty else empty)


@app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A card (.json) or saved weights (.safetensors).")],
    recipe: RecipeFile,
    assignments: Overrides = None,
    verify: Verify = True,
) -> None:
    """Measures a model on a recipe's labelled tasks.

    Prints a table and writes nothing.

    Example: mdft eval runs/real/specialized/mnist/card.json recipe.yaml
    """
    accuracy = actions.measure_model(model, recipe, assignments or (), verify)
    body = [[name, f"{100 * value:.1f}"] for name, value in accuracy.items()]
    if len(body) > 1:
        body.append(["average", f"{100 * sum(accuracy.values()) / len(accuracy):.1f}"])
    show_table(["task", "accuracy, %"], body)


@app.command()
def specialize(
    folder: RunFolder,
    task: Annotated[str, typer.Option("--task", help="Which task to specialize for.")],
    assignments: Overrides = None,
    overwrite: Overwrite = False,
    verify: Verify = True,
) -> None:
    """Specializes a run's meta-model to one more task.

    This is stage 2 alone. Starts from RUN/meta/card.json and writes
    RUN/specialized/<task>/card.json.

    Example: mdft specialize runs/real --task mnist --set specialize.steps=40
    """
    card = folder / "specialized" / task / "card.json"
    check_free(card, overwrite)
    actions.specialize_run(folder, task, assignments or (), card, verify)
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
    verify: Verify = True,
) -> None:
    """Writes a model's merged weights as one file.

    A card holds a few KB of coefficients; with its pool it is a whole model: the recipe's heads and
    samples need not be there. The file has the backbone's own names and loads without mdft_fast.

    Example: mdft export runs/real --task mnist --to mnist.safetensors
    """
    if to.suffix != ".safetensors":
        raise MdftError(f"--to: must be a .safetensors file, got {to}")
    check_free(to, overwrite)
    actions.export_model(source, to, task, recipe, verify)
    say(f"wrote {to}")


@app.command()
def report(folder: RunFolder) -> None:
    """Writes a run's report again, from its results.

    Replaces RUN/report.md and RUN/report.html. Reads result.json, metrics.jsonl and
    recipe.yaml, and nothing else.

    Example: mdft report runs/real
    """
    written = actions.report_run(folder)
    say(f"report: {written}")
    say(f"page:   {written.with_suffix('.html')}")


@app.command()
def doctor() -> None:
    """Shows what this installation can do, and tests it.

    Versions, kernels, devices, extras, folders, and a self-test of every operator on every device
    in a second or two. Writes nothing. Ends with code 1 if an operator fails or its answers are
    wrong.
    """
    for name, value in installation.findings().items():
        say(f"{name:<12} {value}")
    sound = True
    for device, good, words in installation.self_tests():
        say(f"{'self-test':<12} {device}: {words}")
        sound = sound and good
    raise typer.Exit(0 if sound else 1)


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
    actions.run_demo(assignments or (), output, quiet)
