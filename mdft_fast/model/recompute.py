# SPDX-License-Identifier: Apache-2.0
"""Block checkpointing: a block's forward runs again in backward, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from mdft_fast.errors import MdftError


def recomputed(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Calls ``forward`` and keeps none of its activations; backward calls it again.

    Raises:
        MdftError: in backward, if an argument was changed in place meanwhile: other numbers would
            come out.
    """
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    versions = [(leaf, leaf._version) for leaf in leaves if not leaf.is_inference()]

    def run(*args: Any, **kwargs: Any) -> Any:
        if any(leaf._version != version for leaf, version in versions):
            raise MdftError(
                "meta-model: checkpointing needs a block's input as it was, got one that was "
                "changed in place; turn checkpointing off, or the block's in-place operations"
            )
        return forward(*args, **kwargs)

    # The same random numbers again; a recorded step cannot go back to them.
    on_gpu = any(leaf.is_cuda for leaf in leaves)
    random = not (on_gpu and torch.cuda.is_current_stream_capturing())
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=random, **kwargs)
