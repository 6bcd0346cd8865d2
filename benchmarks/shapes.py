# SPDX-License-Identifier: Apache-2.0
"""Real sizes: CLIP's vision towers tensor by tensor, classes of tasks, encoders to build."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Table = dict[str, tuple[int, ...]]


def clip_vision_tower(width: int, layers: int, patch: int, size: int, output: int) -> Table:
    """Returns name -> shape of open_clip's vision transformer, in its own order.

    Args:
        width: of the residual stream; the MLP is four times as wide.
        layers: number of transformer blocks.
        patch: side of a patch, in pixels.
        size: side of an image, in pixels.
        output: width of the embedding.
    """
    table: Table = {
        "class_embedding": (width,),
        "positional_embedding": ((size // patch) ** 2 + 1, width),
        "proj": (width, output),
        "conv1.weight": (width, 3, patch, patch),
    }
    block: Table = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    table |= {"ln_pre.weight": (width,), "ln_pre.bias": (width,)}
    for layer in range(layers):
        table |= {f"transformer.resblocks.{layer}.{name}": s for name, s in block.items()}
    return table | {"ln_post.weight": (width,), "ln_post.bias": (width,)}


def parameters(table: Table) -> int:
    """Returns the number of elements of all tensors."""
    return sum(math.prod(shape) for shape in table.values())


TABLES: dict[str, Table] = {
    "ViT-B/32": clip_vision_tower(width=768, layers=12, patch=32, size=224, output=512),
    "ViT-L/14": clip_vision_tower(width=1024, layers=24, patch=14, size=224, output=768),
    "tiny": clip_vision_tower(width=96, layers=2, patch=8, size=32, output=64),  # for --quick
}

# Classes of eight tasks: of the pool that the real runs use, and of the papers' CLIP tasks.
CLASSES: dict[str, tuple[int, ...]] = {
    "pool": (242, 43, 30, 10, 10, 10, 10, 6),
    "CLIP's eight": (397, 196, 45, 10, 10, 43, 10, 47),
}


class Encoder(NamedTuple):
    """An encoder that a step runs.

    Attributes:
        spec: what :func:`mdft_fast.model.build_backbone` takes.
        size: side of an image, in pixels.
        classes: a key of :data:`CLASSES`.
    """

    spec: dict[str, Any]
    size: int = 224
    classes: str = "CLIP's eight"


ENCODERS: dict[str, Encoder] = {
    "ViT-Tiny 64x64": Encoder(
        {
            "library": "timm",
            "name": "vit_tiny_patch16_224",
            "kwargs": {"img_size": 64, "num_classes": 0},
        },
        size=64,
        classes="pool",
    ),
    "CLIP ViT-B/32": Encoder({"library": "open_clip", "name": "ViT-B-32", "kwargs": {}}),
    "CLIP ViT-L/14": Encoder({"library": "open_clip", "name": "ViT-L-14", "kwargs": {}}),
    "one block of ViT-L/14": Encoder({
        "library": "open_clip",
        "name": "VisionTransformer",
        "kwargs": {
            "image_size": 224, "patch_size": 14, "width": 1024, "layers": 1, "heads": 16,
            "mlp_ratio": 4.0, "output_dim": 768,
        },
    }),
}  # fmt: skip
