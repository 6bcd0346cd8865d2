# SPDX-License-Identifier: Apache-2.0
"""What a method sees of a task: some samples by seed, varied copies, never what is held out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdft_fast import MdftError, Task
from mdft_fast.data import load_samples
from mdft_fast.methods import SamplesToLearn
from mdft_fast.methods.inputs import inputs_of
from mdft_fast.model import split

PREPROCESS = {"size": 8, "mean": 0.5, "std": 0.5}
CPU = torch.device("cpu")


def images(n: int = 20) -> Tensor:
    """Image i is of value 10 · i but for a bright corner."""
    x = (10 * torch.arange(n))[:, None, None, None].expand(n, 8, 8, 3).clone()
    x[:, :3, :3] = 250
    return x.to(torch.uint8)


def inputs(**changes: int) -> list[Tensor]:
    options = {"samples": 6, "copies": 2, "seed": 0, **changes}
    task = SamplesToLearn(_task(), 0.25, 3)
    (one,) = inputs_of([task], ["a"], PREPROCESS, device=CPU, who="x", **options)
    batches = list(one.batches(4))
    assert sum(map(len, batches)) == len(one)
    return batches


def _task() -> Task:
    return Task("a", ("b", "c"), torch.eye(2, 4), images())


def values(batch: Tensor) -> list[int]:
    """Returns which image each row is: its last corner is plain, however it was varied."""
    return [round(float((x[0, 5:, 5:].median() * 0.5 + 0.5) * 25.5)) for x in batch]


def test_copies_come_after_all_samples_and_are_of_the_same() -> None:
    batches = inputs()
    assert [len(batch) for batch in batches] == [4, 2] * 3
    shown = [value for batch in batches for value in values(batch)]
    assert shown[:6] == shown[6:12] == shown[12:]
    plain, first, second = (torch.cat(batches[i : i + 2]) for i in (0, 2, 4))
    for one, other in ((plain, first), (first, second)):
        assert all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert float((plain - first).abs().mean()) < 0.3, "slightly"


def test_what_is_held_out_is_never_shown() -> None:
    _, held_out = split(20, 0.25, 3, "a")
    shown = {value for batch in inputs(samples=100) for value in values(batch)}
    assert len(shown) == 15
    assert not shown & set(held_out.tolist())


def test_equal_seeds_give_equal_bits_and_others_others() -> None:
    one, same, other = inputs(), inputs(), inputs(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[2], other[2])


def test_samples_that_cannot_vary_have_no_copies() -> None:
    class Fixed:
        name = "a"

        def load_samples(self, preprocess: object) -> object:
            return range(5)

    with pytest.raises(MdftError, match=r"x\.copies: must be 0, as the samples of task 'a' cannot"):
        inputs_of([Fixed()], ["a"], PREPROCESS, samples=2, copies=1, seed=0, device=CPU, who="x")  # type: ignore[list-item]
    with pytest.raises(MdftError, match=r"needs unlabelled inputs of every task.*\['b'\]"):
        inputs_of([_task()], ["b"], PREPROCESS, samples=2, copies=0, seed=0, device=CPU, who="x")


def test_images_vary_within_bounds_as_floats_and_bytes() -> None:
    samples = load_samples(images(), PREPROCESS)
    rows = torch.tensor([3, 0, 7])
    made = samples.varied(rows, CPU, seed=1)
    assert torch.equal(made, samples.varied(rows, CPU, seed=1))
    assert torch.equal(made[1:], samples.varied(rows[1:], CPU, seed=1)), "an image's own change"
    exact = samples.batch(torch.arange(20))
    floats = load_samples(exact, PREPROCESS)
    assert torch.equal(made, floats.varied(rows, CPU, seed=1))
    low, high = exact[rows].amin((1, 2, 3)), exact[rows].amax((1, 2, 3))
    assert (made.amin((1, 2, 3)) >= low - 1e-5).all()
    assert (made.amax((1, 2, 3)) <= high + 1e-5).all()
