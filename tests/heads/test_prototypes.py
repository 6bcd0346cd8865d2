# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdft_fast.data import Samples, load_labelled
from mdft_fast.errors import MdftError
from mdft_fast.heads import prototype_head
from tests.world import PREPROCESS, Encoder

NAMES = ("a", "b", "c")
Labelled = tuple[Samples, Tensor]


@pytest.fixture(scope="module")
def labelled() -> Labelled:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 8, 8, 3), np.uint8)  # more than a batch
    labels = np.concatenate([[0, 1, 2], rng.integers(0, 3, 297)])
    return load_labelled((images, labels), PREPROCESS, 3)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Encoder().eval()


def features_of(encoder: nn.Module, samples: Samples) -> Tensor:
    with torch.no_grad():
        return encoder(samples.batch(torch.arange(len(samples)))).double()


def test_rows_are_the_normalised_means(encoder: nn.Module, labelled: Labelled) -> None:
    samples, labels = labelled
    head = prototype_head(encoder, samples, labels, NAMES, scale=20.0)
    features = F.normalize(features_of(encoder, samples), dim=-1)
    for c, row in enumerate(head.weight.double()):
        mean = features[labels == c].mean(dim=0)
        # Float32 features of two batchings, then one rounding of the row.
        torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-5, atol=1e-6)
    assert (head.normalize, head.scale, head.bias) == (True, 20.0, None)
    assert head.weight.dtype == torch.float32


def test_without_norm_it_is_the_nearest_mean(encoder: nn.Module, labelled: Labelled) -> None:
    samples, labels = labelled
    head = prototype_head(encoder, samples, labels, NAMES, scale=3.0, normalize=False)
    features = features_of(encoder, samples)
    means = torch.stack([features[labels == c].mean(dim=0) for c in range(3)])
    distances = torch.cdist(features, means).square()
    wanted = torch.softmax(-1.5 * distances, dim=1)
    found = torch.softmax(head(features.float()).double(), dim=1)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_order_of_the_images_does_not_matter_to_round_off(
    encoder: nn.Module, labelled: Labelled
) -> None:
    samples, labels = labelled
    turned = Samples(samples.x.flip(0), samples.preprocess)
    head = prototype_head(encoder, samples, labels, NAMES)
    again = prototype_head(encoder, turned, labels.flip(0), NAMES)
    torch.testing.assert_close(head.weight, again.weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(head.weight, prototype_head(encoder, samples, labels, NAMES).weight)


def test_a_class_without_an_image_is_an_error(encoder: nn.Module, labelled: Labelled) -> None:
    samples, labels = labelled
    names = ("a", "b", "c", "d", "e")
    with pytest.raises(MdftError, match=r"each of 5 .* got none for \['d', 'e'\] \(2 without\)"):
        prototype_head(encoder, samples, labels, names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(300)}, r"labels must be whole numbers \[300\].*float32"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"labels must be .*got \[5\]"),
        ({"labels": torch.full((300,), 3)}, r"labels must lie in \[0, 3\), got 3"),
        ({"labels": torch.full((300,), -1)}, r"labels must lie in \[0, 3\), got -1"),
        ({"scale": 0.0}, "scale must be above 0, got 0"),
        ({"encoder": Encoder().train()}, "encoder must be in eval mode"),
        ({"encoder": nn.Identity().eval()}, r"features must be \[b, D\], got \[128, 3, 8, 8\]"),
    ],
)
def test_bad_input_is_named(
    encoder: nn.Module, labelled: Labelled, change: dict[str, Any], message: str
) -> None:
    samples, labels = labelled
    given = {"encoder": encoder, "samples": samples, "labels": labels, "classes": NAMES}
    with pytest.raises(MdftError, match=message):
        prototype_head(**{**given, **change})  # type: ignore[arg-type]


def test_is_how_the_real_pools_heads_were_made(real_pool: Path) -> None:
    """Its heads are of training images, ours of test images: other images, the same formula."""
    pytest.importorskip("timm")
    task, classes = "trashnet", 6
    from mdft_fast.checkpoints import open_state
    from mdft_fast.data import NpzSource
    from mdft_fast.model import build_backbone

    kwargs = {"img_size": 64, "num_classes": 0}
    base = build_backbone({"library": "timm", "name": "vit_tiny_patch16_224", "kwargs": kwargs})
    base.load_state_dict(dict(open_state(real_pool / "base.safetensors").tensors))
    source = NpzSource(real_pool / "data" / f"{task}.npz", "x_test", "y_test")
    preprocess = {"size": 64, "mean": 0.5, "std": 0.5}
    samples, labels = load_labelled(source, preprocess, classes)
    names = [str(c) for c in range(classes)]
    head = prototype_head(base, samples, labels, names, scale=20.0)
    theirs = open_state(real_pool / "heads" / f"{task}.safetensors").tensors["weight"].float()
    torch.testing.assert_close(theirs.norm(dim=1), torch.full((classes,), 20.0), rtol=1e-3, atol=0)
    cosines = head.weight @ F.normalize(theirs, dim=1).T
    assert (cosines.argmax(dim=1) == torch.arange(classes)).all()
    assert cosines.diagonal().min() > 0.9
