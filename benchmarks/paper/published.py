# SPDX-License-Identifier: Apache-2.0
"""What the paper reports, as data to stand beside ours. Nothing here enters a computation."""

from __future__ import annotations

# Task: Spearman's ρ of entropy and true loss; drop in accuracy of plain entropy minimisation.
# The paper does not say which model answers, nor whether the drop is in points or relative.
TABLE1 = {
    "SUN397": (0.61, 16.7),
    "Cars": (0.67, 21.2),
    "DTD": (0.70, 30.9),
    "RESISC45": (0.79, 28.5),
    "GTSRB": (0.91, 20.6),
    "SVHN": (0.92, 15.3),
    "EuroSAT": (0.86, 15.9),
    "MNIST": (0.98, 5.3),
}
# Method: average top-1 in per cent over the same eight tasks, CLIP ViT-B/32 and ViT-L/14. The
# merging baselines are from their own papers.
TABLE2 = {
    "pre-trained": (48.1, 64.5),
    "multi-task": (88.9, 93.5),
    "full fine-tuning": (90.5, 94.2),
    "task arithmetic": (69.1, 84.5),
    "AdaMerging, layer-wise": (80.1, 90.8),
    "MDFT": (91.1, 94.6),
}
# Model: seconds of full fine-tuning, seconds of MDFT, ratio.
TABLE3 = {"CLIP ViT-B/32": (361.9, 37.8, 9.57), "CLIP ViT-L/14": (3300.0, 108.0, 30.6)}
TRAINABLE = "3.4 MB (B/32) and 6.8 MB (L/14), which cannot be derived from K · L"
CONVERGED = 80  # steps, figure 3

DIFFERS = (
    "The paper's numbers are of CLIP ViT-B/32 and ViT-L/14 on its eight data sets, with zero-shot "
    "heads and its own splits, on a machine of its own. Ours are of the pool and the machine named "
    "below. Compare shapes and signs, not numbers."
)
