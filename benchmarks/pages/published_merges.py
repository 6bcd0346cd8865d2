# SPDX-License-Identifier: Apache-2.0
"""What authors of merging methods report, as data to stand beside ours; nothing is ranked by it."""

from __future__ import annotations

# Method: average top-1 in per cent over the eight CLIP tasks, ViT-B/32 and ViT-L/14.
ANCHORS: dict[str, tuple[float, float | None]] = {
    "task arithmetic": (69.1, 84.5),
    "RegMean": (71.8, 83.7),
    "TIES": (72.4, 86.0),
    "AdaMerging, layer-wise": (80.1, 90.8),
    "TSV-M": (84.2, 91.5),
    "Iso-CTS": (84.9, 93.0),
    "WUDI": (85.3, 92.5),
    "SA-Merging": (85.9, 93.4),
    "ProDistill, 64 images a task": (86.0, 91.9),
    "AdaRank on Iso-CTS, step chosen by test labels": (89.4, None),
    "SyMerge, heads trained too, on the test images": (90.1, 94.1),
    "individual models": (90.5, 94.2),
}
DIFFERS = (
    "As their authors published them, of CLIP ViT-B/32 and ViT-L/14 on the eight data sets that "
    "the field uses: other models, other tasks, and not all of one set of checkpoints. RegMean was "
    "run again elsewhere, on checkpoints of its own, with 79.2 and 87.5. Never to be ranked with "
    "ours; what compares is the share of the gap."
)
