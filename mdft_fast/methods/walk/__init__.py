# SPDX-License-Identifier: Apache-2.0
"""One walk over a model, block by block, with each task's streams of activations."""

from mdft_fast.methods.walk.structure import LayerSite, Structure, Writer, explore
from mdft_fast.methods.walk.walking import Walk

__all__ = ["LayerSite", "Structure", "Walk", "Writer", "explore"]
