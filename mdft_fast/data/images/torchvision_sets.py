# SPDX-License-Identifier: Apache-2.0
"""The data sets of the task-vectors literature, in the layouts that torchvision reads.

Nothing is downloaded. torchvision parses the files; where it has no split (SUN397, EuroSAT) the
split is made here. torchvision reads labels along with the rest; they are left where they are
until an evaluation asks for them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from mdft_fast.data.images.class_folders import SPLIT_SEED, FolderSource
from mdft_fast.data.images.listing import ListedSource, Listing, Opened, Role, of_files
from mdft_fast.data.images.split_names import SPLITS, read_list
from mdft_fast.errors import MdftError, nearest, need
from mdft_fast.model import split as random_split

# A part of EuroSAT each: of 27,000 images 2,700, as in the literature.
_EUROSAT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class _Layout:
    """One data set.

    Attributes:
        splits: those that it has.
        needs: split -> paths below the root that must be there.
        read: root and split -> what it holds, without its name and origin.
    """

    splits: tuple[str, ...]
    needs: Callable[[str], tuple[str, ...]]
    read: Callable[[Path, str], Listing]


_listing = functools.partial(Listing, "", {})  # its name and origin come last


@dataclasses.dataclass(frozen=True)
class TorchvisionSource(ListedSource):
    """A data set on disk as torchvision wants it.

    Attributes:
        name: one of :data:`TORCHVISION_SETS`.
        root: torchvision's ``root``: the folder that the set's own folder lies in.
        split: "train", "test", "val" (DTD, EuroSAT) or "extra" (SVHN); None: "train" for what is
            adapted to, "test" for what is evaluated.
    """

    name: str
    root: str | os.PathLike[str]
    split: str | None = None

    def listing(self, role: Role) -> Listing:
        """See :class:`~mdft_fast.data.images.listing.ListedSource`."""
        layout = _LAYOUTS.get(self.name)
        if layout is None:
            hint = nearest(self.name, _LAYOUTS)
            raise MdftError(
                f"torchvision: name must be one of {list(_LAYOUTS)}, got {self.name!r}{hint}"
            )
        chosen, root = self.split or role, Path(self.root).absolute()
        if chosen not in layout.splits:
            raise MdftError(
                f"{self.name}: split must be one of {list(layout.splits)}, got {chosen!r}"
            )
        needs = layout.needs(chosen)
        missing = [path for path in needs if not (root / path).exists()]
        if missing:
            raise MdftError(
                f"{self.name}, split {chosen}: {root} must hold {', '.join(needs)}; "
                f"missing: {', '.join(missing)}. Nothing is downloaded: unpack the data set there, "
                "or name the folder in which it lies as root"
            )
        listing: Listing = _guarded(lambda: layout.read(root, chosen), f"{self.name} in {root}")
        return dataclasses.replace(
            listing,
            name=f"{self.name}, split {chosen}, in {root}",
            origin={"torchvision": self.name, "root": str(root), "split": chosen},
        )


def _guarded(read: Callable[[], Any], name: str) -> Any:
    """Calls a reader; whatever a broken file makes it raise becomes one clear error."""
    try:
        return read()
    except MdftError:
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        if "scipy" in text.lower():
            need("scipy", "data", who=name)
        raise MdftError(f"{name}: not readable: {text}") from None


def _dataset(name: str) -> Any:
    """Returns torchvision's class of a data set."""
    return getattr(need("torchvision.datasets", "data", who=name), name)


def _paths(dataset: Any, label_files: tuple[Path, ...] = ()) -> Listing:
    """Returns what a data set of image files holds; its loader gives paths back as they are."""
    files = tuple(Path(dataset[i][0]) for i in range(len(dataset)))
    opened = of_files(files, lambda: [int(dataset[i][1]) for i in range(len(dataset))])
    names = tuple(str(name) for name in dataset.classes)
    return _listing(files, names, opened, label_files=label_files)


def _sun397(root: Path, chosen: str) -> Listing:
    # torchvision has every image and no split: the first of the official partitions is usual.
    folder = root / "SUN397"
    names, chosen_list = folder / "ClassName.txt", folder / _sun397_list(chosen)
    lines = read_list(names).split()
    classes = [line[3:] for line in lines]  # /a/abbey
    number = {name: i for i, name in enumerate(classes)}
    listed = read_list(chosen_list).split()
    relative = [Path(line.strip("/")) for line in listed]
    files = tuple(folder / path for path in relative)

    def labels() -> Sequence[int]:
        return [number["/".join(path.parts[1:-1])] for path in relative]

    opened = of_files(files, labels)
    return _listing(files, tuple(classes), opened, label_files=(names, chosen_list))


def _sun397_list(chosen: str) -> str:
    return f"{'Training' if chosen == 'train' else 'Testing'}_01.txt"


def _cars(root: Path, chosen: str) -> Listing:
    dataset = _dataset("StanfordCars")(str(root), split=chosen, loader=str)
    return _paths(dataset, tuple(root / path for path in _cars_needs(chosen)[:2]))


def _dtd(root: Path, chosen: str) -> Listing:
    dataset = _dataset("DTD")(str(root), split=chosen, loader=str)
    return _paths(dataset)


def _gtsrb(root: Path, chosen: str) -> Listing:
    samples = _dataset("GTSRB")(str(root), split=chosen)._samples
    files = tuple(Path(path) for path, _ in samples)
    opened = of_files(files, lambda: [int(label) for _, label in samples])
    answers = (root / _gtsrb_needs(chosen)[1],) if chosen == "test" else ()
    return _listing(files, None, opened, label_files=answers)


def _eurosat(root: Path, chosen: str) -> Listing:
    folder = FolderSource(root / "eurosat" / "2750").listing("train")
    files = sorted(folder.files, key=lambda path: path.name)
    rest, test = random_split(len(files), _EUROSAT_SHARE, SPLIT_SEED, "eurosat/test")
    share = min(len(test) / len(rest), 0.5)
    train, val = random_split(len(rest), share, SPLIT_SEED, "eurosat/val")
    chosen_files = {"test": test, "val": rest[val], "train": rest[train]}[chosen]
    paths = tuple(files[i] for i in chosen_files.tolist())
    classes = folder.class_names or ()
    return _listing(
        paths, classes, of_files(paths, lambda: [classes.index(p.parent.name) for p in paths])
    )


def _svhn(root: Path, chosen: str) -> Listing:
    class Unchecked(_dataset("SVHN")):  # type: ignore[misc]
        def _check_integrity(self) -> bool:  # the md5 of the published file; ours may be a part
            return True

    def opened() -> Opened:
        dataset = _guarded(lambda: Unchecked(str(root), split=chosen), f"SVHN in {root}")
        return Opened(
            len(dataset), lambda i: dataset[i][0], lambda: [int(y) for y in dataset.labels]
        )

    digits = tuple(str(digit) for digit in range(10))
    return _listing((root / f"{chosen}_32x32.mat",), digits, opened)


def _mnist(root: Path, chosen: str) -> Listing:
    mnist = _dataset("MNIST")

    def opened() -> Opened:
        dataset = _guarded(lambda: mnist(str(root), train=chosen == "train"), f"MNIST in {root}")
        return Opened(
            len(dataset), lambda i: dataset[i][0], lambda: [int(y) for y in dataset.targets]
        )

    images, labels = (root / "MNIST" / "raw" / name for name in _mnist_files(chosen))
    return _listing((images,), tuple(mnist.classes), opened, channels=1, label_files=(labels,))


def _mnist_files(chosen: str) -> tuple[str, str]:
    part = "train" if chosen == "train" else "t10k"
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _cars_needs(chosen: str) -> tuple[str, ...]:
    annotations = (
        "devkit/cars_train_annos.mat" if chosen == "train" else "cars_test_annos_withlabels.mat"
    )
    names = ("devkit/cars_meta.mat", annotations, f"cars_{chosen}")
    return tuple(f"stanford_cars/{name}" for name in names)


def _gtsrb_needs(chosen: str) -> tuple[str, ...]:
    if chosen == "train":
        return ("gtsrb/GTSRB/Training",)
    return ("gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv")


_BOTH = get_args(Role)
_THREE = SPLITS
_LAYOUTS = {
    "SUN397": _Layout(
        _BOTH, lambda chosen: ("SUN397/ClassName.txt", f"SUN397/{_sun397_list(chosen)}"), _sun397
    ),
    "StanfordCars": _Layout(_BOTH, _cars_needs, _cars),
    "EuroSAT": _Layout(_THREE, lambda chosen: ("eurosat/2750",), _eurosat),
    "SVHN": _Layout((*_BOTH, "extra"), lambda chosen: (f"{chosen}_32x32.mat",), _svhn),
    "GTSRB": _Layout(_BOTH, _gtsrb_needs, _gtsrb),
    "MNIST": _Layout(
        _BOTH,  # torchvision asks for all four files
        lambda _: tuple(f"MNIST/raw/{name}" for c in _BOTH for name in _mnist_files(c)),
        _mnist,
    ),
    "DTD": _Layout(
        _THREE, lambda chosen: ("dtd/dtd/images", f"dtd/dtd/labels/{chosen}1.txt"), _dtd
    ),
}
TORCHVISION_SETS = tuple(_LAYOUTS)
