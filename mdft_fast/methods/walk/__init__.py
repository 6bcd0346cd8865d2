# SPDX-License-Identifier: Apache-2.0
"""One walk over a model, block by block, with each task's streams of activations."""

from mdft_fast.methods.walk.candidates import BlockInputs, walk_blocks
from mdft_fast.methods.walk.explanation import explain_walk
from mdft_fast.methods.walk.sensitivity import Sensitivities
from mdft_fast.methods.walk.streams import LayerPass, crowded, walk_layers
from mdft_fast.methods.walk.structure import LayerSite
from mdft_fast.methods.walk.walk_memory import WalkMemory, forecast_walk
from mdft_fast.methods.walk.walking import Walk

__all__ = [
    "BlockInputs",
    "LayerPass",
    "LayerSite",
    "Sensitivities",
    "Walk",
    "WalkMemory",
    "crowded",
    "explain_walk",
    "forecast_walk",
    "walk_blocks",
    "walk_layers",
]
