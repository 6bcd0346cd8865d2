# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("sklearn", reason="the demo's digits are scikit-learn's")

from mdft_fast.app.demo import demo_tasks as tasks
from mdft_fast.app.demo import glyphs as images

PROCEDURAL = [task for task in tasks.TASKS if task.draw is not None]
each_procedural = pytest.mark.parametrize("task", PROCEDURAL, ids=lambda task: task.name)


@each_procedural
def test_images_are_deterministic_and_use_the_range(task: tasks.DemoTask) -> None:
    first, labels = tasks.split_images(task, "test", 300, 150)
    again, labels_again = tasks.split_images(task, "test", 300, 150)
    assert torch.equal(first, again)
    assert torch.equal(labels, labels_again)
    assert first.dtype == torch.uint8
    assert first.shape == (150, images.SIZE, images.SIZE, 3)
    assert first.is_contiguous()
    spread = first.float().flatten(1).std(1)
    assert spread.min() > 8, "an image is blank"


@each_procedural
def test_labels_are_balanced(task: tasks.DemoTask) -> None:
    _, labels = tasks.split_images(task, "train", 300, 150)
    counts = torch.bincount(labels, minlength=len(task.class_names))
    assert labels.dtype == torch.int64
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(labels, labels.sort().values)


@pytest.mark.parametrize("n", [400, 1500])  # 400: a seed shared with the test split would show
@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)
def test_train_and_test_share_no_image(task: tasks.DemoTask, n: int) -> None:
    train_images, _ = tasks.split_images(task, "train", n, 400)
    test_images, _ = tasks.split_images(task, "test", n, 400)
    seen = {image.numpy().tobytes() for image in train_images}
    assert not seen.intersection(image.numpy().tobytes() for image in test_images)


def test_digits_are_all_used_once() -> None:
    digits = tasks.TASKS[0]
    parts = [tasks.split_images(digits, split, 3000, 400) for split in ("train", "test")]
    assert [len(labels) for _, labels in parts] == [1397, 400]
    assert parts[0][0].dtype == torch.uint8


def test_tasks_differ_in_size() -> None:
    sizes = [len(task.class_names) for task in tasks.TASKS]
    assert len(sizes) >= 6
    assert len(set(sizes)) >= 6
    assert max(sizes) >= 100
    for task in tasks.TASKS:
        assert len(set(task.class_names)) == len(task.class_names)


def test_counts_shows_as_many_dots_as_its_label_says() -> None:
    clean = images.Style((1.0, 1.0), noise=0.0, polarity=1)
    task = next(task for task in tasks.TASKS if task.name == "counts")
    labels = torch.arange(6).repeat(5)
    drawn = task.images(labels, clean, tasks.PLAIN_POSE, torch.Generator().manual_seed(0))
    area = (drawn[..., 0].float() / 255).sum((1, 2)).reshape(5, 6).mean(0)
    assert (area.diff() > 0.6 * area[0]).all()


def test_turns_shows_quarter_turns_to_the_right() -> None:
    flat = images.Style((1.0, 1.0), noise=0.0, polarity=1)
    still = images.Pose((1.0, 1.0), turn_degrees=0, shift=0)
    task = next(task for task in tasks.TASKS if task.name == "turns")
    drawn = [
        task.images(torch.tensor([turn]), flat, still, torch.Generator().manual_seed(3))[0, ..., 0]
        for turn in range(4)
    ]
    for turn in range(1, 4):
        turned = torch.rot90(drawn[0], -turn)
        assert (turned.float() - drawn[turn].float()).abs().max() <= 1


def test_fonts_without_a_glyph_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have '∀', got no glyph"):
        images.glyph_bank("∀", ["STIXGeneralItalic"])


def test_mixture_numbers_the_classes_through() -> None:
    drawn, labels = tasks.draw_plain(2000, torch.Generator().manual_seed(0))
    classes = sum(len(task.class_names) for task in tasks.TASKS if task.mixture_share)
    assert len(drawn) == len(labels) == 2000
    assert torch.equal(labels.unique(), torch.arange(classes))
    assert math.isclose(sum(task.mixture_share for task in tasks.TASKS), 1.0)
