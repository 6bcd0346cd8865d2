# SPDX-License-Identifier: Apache-2.0
"""What a recipe would take in each mode and codec, told before anything is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch

from mdft_fast.app.forecast.step_forecast import Forecast, forecast, forecast_start
from mdft_fast.app.forecast.verification import verify
from mdft_fast.app.opening import choose_device, images_at_once, start_of
from mdft_fast.app.recipe import Recipe
from mdft_fast.errors import MdftError
from mdft_fast.model import available_memory
from mdft_fast.pool import Manifest, read_manifest

_SHARE = 0.9  # of the memory that is free, where no budget is given


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a recipe's stage 1 would take.

    Attributes:
        rows: every mode and codec, with and without checkpointing, the fastest mode first.
        chosen: what the recipe runs: the fastest mode that fits, or the mode that it names.
        fits: whether that fits.
        budget: bytes that may be taken, and ``given``: whether the recipe says so.
        samples: images of a forward pass.
        start: the merge that λ starts from, as ``average()``; "" where it starts from numbers.
        making: bytes that making the start takes before the first step, base and vectors among
            them; None: no start is made, or that is not known.
    """

    rows: tuple[Forecast, ...]
    chosen: Forecast
    fits: bool
    budget: int
    given: bool
    samples: int
    start: str = ""
    making: int | None = None

    def table(self, *, every_codec: bool) -> list[list[str]]:
        """Returns a header and a line a row, of the chosen codec or of all, as `mdft plan` shows.

        An arrow marks the chosen row where it fits; brackets: not in memory, but in files or on
        the host.
        """
        header = "", "mode", "codec", "again", "base", "vectors", "weights", "rest", "peak", "moved"
        lines = [list(header)]
        for row in self.rows:
            if every_codec or row.codec == self.chosen.codec:
                stored = [size(row.base), size(row.vectors)]
                lines.append([
                    "->" if row == self.chosen and self.fits else "",
                    row.mode, row.codec, "yes" if row.checkpointing else "no",
                    *(f"({part})" if row.away else part for part in stored),
                    *map(size, (row.weights, row.rest, row.peak, row.moved)),
                ])  # fmt: skip
        return lines

    def advice(self) -> str:
        """Returns what to change so that a step fits, in keys of the recipe."""
        fitting = [row for row in self.rows if row.peak <= self.budget]
        fitting.sort(key=lambda row: row.moved)
        least = min(self.rows, key=lambda row: row.peak)
        lines = [
            f"a step with {self.samples} images a forward pass would take "
            f"{size(self.chosen.peak)} ({recipe_keys(self.chosen)}), and "
            f"{size(self.budget)} {'are in the budget' if self.given else 'are free'}",
            "what fits, the fastest first:" if fitting else "nothing fits; the least is:",
        ]
        ways = {recipe_keys(row): row for row in fitting[:3] or [least]}
        lines += [f"  {size(row.peak):>9}  {way}" for way, row in ways.items()]
        if self.making is not None and self.making > self.budget:
            lines.append(
                f"making the start would take {size(self.making)}; start.keep=false, fewer "
                f"start.samples and a smaller start.batch take less"
            )
        if self.samples > 1:
            lines.append(f"  memory.micro_batch below {self.samples} lowers what activations take")
        return "\n".join(lines)


def plan(recipe: Recipe, *, every: bool = True) -> MemoryPlan:
    """Forecasts the memory of a recipe's stage 1 and picks the fastest mode that fits.

    No weight is read: see :func:`~mdft_fast.app.forecast.verify`, which refuses in a run's own
    words what does not fit.

    Args:
        recipe: what would run. ``memory.mode`` "auto" leaves the mode to the plan, and
            ``memory.budget`` says what fits; without one, 90 % of what is free now.
        every: whether modes slower than the chosen one are forecast too, at a second each.

    Raises:
        MdftError: if the recipe's files are missing or do not fit, or its backbone does not run on
            tensors without data.
    """
    recipe.check_files()
    memory, device = recipe.memory, choose_device(recipe.device)
    if memory.cuda_graph and device.type != "cuda":
        raise MdftError(f"recipe: memory.cuda_graph needs a CUDA device, got {device.type}")
    samples = images_at_once(recipe)
    passes = -(-recipe.construct.batch * len(recipe.tasks) // samples)
    folder, start = recipe.pool.folder, start_of(recipe)
    manifest = read_manifest(folder) if folder is not None else None
    packed = manifest.codec if manifest is not None else None
    changes = bool(recipe.transform) or (start is not None and not _is_started(manifest))
    subject = verify(recipe)
    forecasts = forecast(
        subject,
        samples,
        precision=recipe.precision,
        passes=passes,
        gpu=device.type == "cuda",
        # A pool that is changed or encoded anew on opening is not read from its files any more.
        mapped=() if packed is None or changes else (packed,),
        granularity=recipe.granularity,
    )
    budget = memory.budget if memory.budget is not None else int(_SHARE * available_memory(device))
    codec = memory.codec if packed is None or memory.codec != "fp32" else packed
    rows: list[Forecast] = []
    allowed: list[Forecast] = []
    for row in forecasts:
        rows.append(row)
        as_asked = row.codec == codec and row.checkpointing == memory.checkpointing
        if as_asked and memory.mode in ("auto", row.mode):
            allowed.append(row)
        if not every and any(row.peak <= budget for row in allowed):
            break
    if not allowed:
        raise MdftError(
            f"plan: memory.mode {memory.mode!r} needs blocks, got a backbone without; name them "
            f"in memory.blocks"
        )
    chosen = next((row for row in allowed if row.peak <= budget), allowed[-1])
    given = memory.budget is not None
    words = "" if start is None else str(start)
    making = None if start is None or _is_started(manifest) else forecast_start(subject, start)
    if making is not None:  # it is made before the first step, beside base and vectors
        making += chosen.base + chosen.vectors
    fits = max(chosen.peak, making or 0) <= budget
    return MemoryPlan(tuple(rows), chosen, fits, budget, given, samples, words, making)


def _is_started(manifest: Manifest | None) -> bool:
    """Tells whether a packed pool holds a start already."""
    return manifest is not None and len(manifest.others["vector_names"]) > len(manifest.tasks)


@contextlib.contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Answers running out of memory with the plan and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = str(error) or type(error).__name__
        typed = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not typed and "allocate memory" not in message:  # what torch's CPU allocator says
            raise
        advice = plan(recipe).advice()
        raise MdftError(f"out of memory: {message.splitlines()[0]}\n{advice}") from error


def recipe_keys(row: Forecast) -> str:
    """Returns the recipe's keys that give a row."""
    again = " memory.checkpointing=true" if row.checkpointing else ""
    return f"memory.mode={row.mode} memory.codec={row.codec}{again}"


def size(count: int) -> str:
    """Returns a number of bytes as people write it."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
