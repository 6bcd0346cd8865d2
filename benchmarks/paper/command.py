# SPDX-License-Identifier: Apache-2.0
"""The command line of the paper's tables and figures, and what their files hold."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.paper import ITEMS
from benchmarks.paper.published import DIFFERS
from benchmarks.paper.study import Study
from benchmarks.pictures import RC, save
from mdft_fast import MdftError
from mdft_fast.app.demo import ensure_pool
from mdft_fast.files import write_json, write_text


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("items", nargs="+", choices=[*ITEMS, "paper"], metavar="ITEM",
        help=f"some of {list(ITEMS)}; paper: all")  # fmt: skip
    add("--recipe", type=Path, help="its pool and samples; default: the embedded demo's")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the recipe")
    add("--steps", type=int, help="of stage 1, of every preset too")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--out", type=Path, required=True, metavar="FOLDER", help="for JSON, Markdown and PNG")
    add("--work", type=Path, default=Path("runs/paper"), metavar="FOLDER",
        help="keeps learned λ, which several items share (default: %(default)s)")  # fmt: skip
    add("--baselines", type=Path, metavar="FOLDER", help="what examples/finetune_pool.py made")
    add("--points", type=int, default=20, help="of fig3's curves (default: %(default)s)")
    add("--all-pairs", action="store_true", help="fig2: every layer with every layer")
    options = parser.parse_args(argv)
    if "paper" in options.items:
        options.items = list(ITEMS)
    return options


def main(argv: list[str]) -> int:
    """Measures the items and writes their files; returns the exit status."""
    options = arguments(argv)
    overrides = [*options.set, *([f"construct.steps={options.steps}"] if options.steps else [])]
    try:
        recipe = options.recipe or ensure_pool(progress=print) / "recipe.yaml"
        study = Study(recipe, overrides, options.seeds, options.work)
        for name in options.items:
            content = measured(name, study, options)
            write(options.out, name, content)
            print(f"{options.out / name}.md", flush=True)
    except MdftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measured(name: str, study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """Returns an item's results with where they come from."""
    recipe, pool = study.recipe, study.built.pool
    words = ["python benchmarks/run.py", name, *(["--recipe", recipe_name(options)])]
    words += ["--set", *options.set] if options.set else []
    words += ["--steps", str(options.steps)] if options.steps else []
    words += ["--seeds", *map(str, options.seeds)]
    words += ["--baselines", "FOLDER"] if options.baselines and name in ("table2", "table3") else []
    words += ["--all-pairs"] if options.all_pairs and name == "fig2" else []
    results = ITEMS[name].measure(study, options)
    return {
        "item": name,
        **harness.origin(" ".join(words), study.built.device),
        "load_average": os.getloadavg()[0],
        "preset": recipe.preset,
        "seeds": list(options.seeds),
        "transductive": recipe.transductive,
        "pool": {"name": recipe_name(options), "tasks": list(study.names), "codec": pool.codec,
                 "parameters": pool.parameters, "checksum": pool.checksum},
        "results": results,
    }  # fmt: skip


def recipe_name(options: argparse.Namespace) -> str:
    """Returns the recipe's name without its place; the embedded demo's is ``demo``."""
    return options.recipe.stem if options.recipe else "demo"


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Writes an item's three files; each appears whole or not at all."""
    import matplotlib as mpl

    write_json(folder / f"{name}.json", content)
    write_text(folder / f"{name}.md", page(content))
    with mpl.rc_context(RC):
        save(ITEMS[name].draw(content["results"]), folder / f"{name}.png")


def page(content: dict[str, Any], pictures: str = "") -> str:
    """Returns an item's Markdown, from its JSON alone; its picture lies below ``pictures``."""
    name = content["item"]
    return "\n\n".join([
        f"## {ITEMS[name].title}", f"![{ITEMS[name].title}]({pictures}{name}.png)",
        ITEMS[name].markdown(content["results"]), DIFFERS, origin(content),
    ]) + "\n"  # fmt: skip


def origin(content: dict[str, Any]) -> str:
    """Returns where an item's numbers come from, in a sentence."""
    pool, seeds = content["pool"], ", ".join(map(str, content["seeds"]))
    split = "**transductive: learned from test images**" if content["transductive"] else (
        "learned from unlabelled training images")  # fmt: skip
    return (
        f"From the recipe `{pool['name']}` ({len(pool['tasks'])} tasks, {pool['parameters']:,} "
        f"parameters a model), preset `{content['preset']}`, seeds {seeds}, {split}; labels serve "
        f"evaluation alone. {content['date'][:10]}, {content['device']}, {content['threads']} "
        f"thread{'s' * (content['threads'] != 1)}, load {content['load_average']:.1f}, torch "
        f"{content['versions']['torch']}, `{content['command']}`."
    )
