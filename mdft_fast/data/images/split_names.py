# SPDX-License-Identifier: Apache-2.0
"""Which folders, and lists, are splits of a data set: ``train``, ``Training``, ``test_set``, ..."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from mdft_fast.errors import MdftError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_UNLABELLED = {"unlabelled", "unlabeled"}  # alone, all that there is
_OTHER_WORDS = {"eval", "evaluation", "holdout", "extra", "labelled", "labeled", *_UNLABELLED}
_FILLERS = {"set", "data", "dataset", "split", "images", "image", "imgs", "img", "samples"}
# Left beside a class's folder by programs: notebooks, macOS archives, NAS thumbnails, trash.
_LITTER = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


def is_hidden(name: str) -> bool:
    """Tells whether a name is none of a data set's: it begins with a dot, or a program left it."""
    return name.startswith(".") or name.lower() in _LITTER


def same_form(name: str) -> str:
    """Returns a name in one form of Unicode: macOS writes é as e and an accent."""
    return unicodedata.normalize("NFC", name)


def split_of(name: str) -> Split | None:
    """Returns the split that a name says and nothing besides, whatever its case; None: none."""
    words = [word for word in _words(name) if word not in _FILLERS]
    return _WORDS.get(words[0]) if len(words) == 1 else None


def find_split(root: Path, split: str) -> Path | None:
    """Returns the folder, or else the list ``.txt``, of a split; the plain name goes first.

    Raises:
        MdftError: if there are two, such as ``Train`` and ``training``.
    """
    if not root.is_dir():
        return None
    entries = [Path(entry) for entry in os.scandir(root) if not is_hidden(entry.name)]
    for kind, stem in ((Path.is_dir, "name"), (Path.is_file, "stem")):
        alike = sorted(
            entry
            for entry in entries
            if split_of(getattr(entry, stem)) == split
            and kind(entry)
            and (stem == "name" or entry.suffix.lower() == ".txt")
        )
        if len(alike) > 1:
            raise MdftError(
                f"{root}: must hold one {split!r} split, got {[entry.name for entry in alike]}; "
                "name the one that is meant, as the path, or take the other away"
            )
        if alike:
            return alike[0]
    return None


def read_list(file: Path) -> str:
    """Returns the text of a list of a split, without a mark of its byte order.

    Raises:
        MdftError: if it is not in UTF-8; it names the line.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise MdftError(
            f"{file}: must be text in UTF-8, got byte {error.object[error.start]:#04x} in line "
            f"{line}; save it in UTF-8"
        ) from None


def splits_among(names: Iterable[str]) -> list[str]:
    """Returns the folders that can only be splits, so no classes.

    That is two or more of them, or all that there is. One class among others may be called "train".
    """
    names = list(names)
    plain = [n for split in SPLITS for n in names if split_of(n) == split]
    plain += [n for n in names if set(_words(n)) & _OTHER_WORDS and not split_of(n)]
    if len(plain) > 1:
        return plain
    words = [(_WORDS.keys() | _OTHER_WORDS) & set(_words(n)) for n in names]
    return names if all(words) and set().union(*words) - _UNLABELLED else []


def _words(name: str) -> list[str]:
    """Returns the words of a name, in lower case; TrainSet and trainset are two each."""
    name = unicodedata.normalize("NFKC", name)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", name.lower())
    return [part for word in words for part in _parted(word)]


def _parted(word: str) -> tuple[str, ...]:
    rest = word.removesuffix("set")
    return (rest, "set") if rest != word and rest in _WORDS else (word,)
