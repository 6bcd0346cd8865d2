# SPDX-License-Identifier: Apache-2.0
"""The arena: all parameters of a model in one flat tensor, and task vectors over it."""

from mdft_fast.arena.checksums import digest, raw
from mdft_fast.arena.codecs import (
    CodecError,
    Encoder,
    add_errors,
    check_codec,
    codec_errors,
    codes_of,
    copy_row,
    empty_vectors,
    encode,
    forms_of,
    rows_of,
)
from mdft_fast.arena.layout import (
    TILE,
    Layout,
    Slot,
    TilePlan,
    makes_fakes,
    name_means,
    plan_of_one,
)
from mdft_fast.arena.task_vectors import (
    CODECS,
    DTYPE_OF_CODEC,
    ERROR_OF_CODEC,
    GROUP,
    LARGEST_CODE,
    Codec,
    TaskVectors,
)

__all__ = [
    "CODECS",
    "DTYPE_OF_CODEC",
    "ERROR_OF_CODEC",
    "GROUP",
    "LARGEST_CODE",
    "TILE",
    "Codec",
    "CodecError",
    "Encoder",
    "Layout",
    "Slot",
    "TaskVectors",
    "TilePlan",
    "add_errors",
    "check_codec",
    "codec_errors",
    "codes_of",
    "copy_row",
    "digest",
    "empty_vectors",
    "encode",
    "forms_of",
    "makes_fakes",
    "name_means",
    "plan_of_one",
    "raw",
    "rows_of",
]
