# SPDX-License-Identifier: Apache-2.0
"""What a torch pickle may rebuild: tensors and their containers, by our own functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mdft_fast.checkpoints.pickle_machine import Functions, Name, PickleRefused, kind_of

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    # Of quantized tensors, whose elements are these numbers; the tensors are not read.
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}
# Those without a storage class of their own, as far as this torch has them.
_NEWER = (
    "uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
    "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
_BY_NAME = {str(dtype): dtype for dtype in _DTYPES.values()} | {
    f"torch.{name}": getattr(torch, name) for name in _NEWER if hasattr(torch, name)
}
_MODULES = ("torch", "torch.cuda", "torch.storage")


@dataclasses.dataclass(eq=False)
class Storage:
    """A run of elements in a file.

    Attributes:
        key: what the file calls it.
        dtype: of an element; uint8 where the pickle does not say.
        elements: how many the whole has.
        start: the first that belongs to this one, a view in old files.
        length: how many do.
    """

    key: str
    dtype: torch.dtype
    elements: int
    start: int
    length: int


@dataclasses.dataclass(eq=False)
class Unreadable:
    """A tensor of a form that is not read here; ``what`` says which."""

    what: str


@dataclasses.dataclass(eq=False)
class TensorRef:
    """A tensor that is not read yet; it lies within its storage.

    Attributes:
        storage: where its elements are.
        dtype: of an element.
        offset: of its first element, in elements.
        size: its shape.
        stride: steps between neighbours, in elements.
        changes: of "conj" and "neg" those that its elements still go through.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    changes: frozenset[str] = frozenset()

    def read(self, elements: Callable[[Storage, torch.dtype], Tensor]) -> Tensor:
        """Returns the tensor, a view of the elements of its storage but for ``changes``."""
        run = elements(self.storage, self.dtype)
        tensor = run.as_strided(self.size, self.stride, run.storage_offset() + self.offset)
        tensor = tensor.conj_physical() if "conj" in self.changes else tensor
        return tensor.neg() if "neg" in self.changes else tensor


def persistent(identity: Any) -> Storage | Name:
    """Returns what a persistent id stands for: a storage, or in old files a class."""
    if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
        return Name(kind_of(identity[1]))
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise PickleRefused("a persistent id is no storage's")
    _, kind, key, _, elements, *view = identity
    module, _, leaf = kind_of(kind).rpartition(".")
    if not isinstance(kind, Name) or module not in _MODULES or leaf not in _DTYPES:
        raise PickleRefused(f"a storage must be one of {sorted(_DTYPES)}, got {kind_of(kind)}")
    start, length = 0, elements
    if view and isinstance(view[0], tuple) and len(view[0]) == 3:
        _, start, length = view[0]
    counts = (elements, start, length)
    if not isinstance(key, str) or not all(_is_count(count) for count in counts):
        raise PickleRefused("a storage's key or size is no text or number")
    if start + length > elements:
        raise PickleRefused(f"a view of a storage ends at {start + length} of {elements} elements")
    return Storage(key, _DTYPES[leaf], elements, start, length)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any = None, __: Any = None,
    metadata: Any = None,
) -> TensorRef | Unreadable:  # fmt: skip
    if not isinstance(storage, Storage):
        raise PickleRefused(f"a tensor's elements are {kind_of(storage)}, no storage")
    return _checked(storage, storage.dtype, offset, size, stride, metadata)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any,
    metadata: Any = None,
) -> TensorRef | Unreadable:  # fmt: skip
    known = _BY_NAME.get(kind_of(dtype))
    if not isinstance(storage, Storage):
        raise PickleRefused(f"a tensor's elements are {kind_of(storage)}, no storage")
    if known is None:
        return Unreadable(f"one of dtype {kind_of(dtype)}")
    return _checked(storage, known, offset, size, stride, metadata)


def _checked(
    storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any, metadata: Any
) -> TensorRef | Unreadable:
    # What changes a tensor's values: the bits "conj" and "neg" of a lazy view.
    lazy = metadata if isinstance(metadata, dict) else {}
    known = lazy.keys() <= {"conj", "neg"} and all(type(bit) is bool for bit in lazy.values())
    if not known or (metadata is not None and not isinstance(metadata, dict)):
        return Unreadable("one with metadata of an unknown kind")
    lists = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    if not lists or len(size) > 32 or not all(map(_is_count, (offset, *size, *stride))):
        raise PickleRefused("a tensor's shape and strides are no numbers")
    numel, length = math.prod(size), storage.length * storage.dtype.itemsize // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel and (last >= length or numel > length):
        raise PickleRefused(
            f"a tensor of shape {list(size)} and strides {list(stride)} from element {offset} on "
            f"does not lie in its storage of {length} elements"
        )
    changes = frozenset(name for name, bit in lazy.items() if bit)
    return TensorRef(storage, dtype, offset if numel else 0, size, stride, changes)


def _other(what: str) -> Callable[..., Unreadable]:
    return lambda *_: Unreadable(what)


def _parameter(data: Any = None, *_: Any) -> Any:
    return data


def _from_type(function: Any, _: Any, arguments: Any, __: Any = None) -> Any:
    """Rebuilds a tensor that had attributes of its own; they are not kept."""
    known = FUNCTIONS.get(kind_of(function)) if isinstance(function, Name) else None
    if known not in (_tensor, _tensor_v3, _parameter) or not isinstance(arguments, tuple):
        return Unreadable(f"one of {kind_of(function)}")
    return known(*arguments)


def _size(items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, (list, tuple)):
        raise PickleRefused(f"a torch.Size is not made of numbers but of {kind_of(items)}")
    return tuple(items)


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, (list, tuple)):
        raise PickleRefused(f"an OrderedDict is not made of pairs but of {kind_of(pairs)}")
    if not all(isinstance(p, (list, tuple)) and len(p) == 2 and type(p[0]) is str for p in pairs):
        raise PickleRefused("an OrderedDict is not made of names and values")
    return dict(pairs)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


# The only calls of a pickle that are answered with more than a record.
FUNCTIONS: Functions = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_sparse_tensor": _other("a sparse one"),
    "torch._utils._rebuild_sparse_csr_tensor": _other("a sparse one"),
    "torch._utils._rebuild_nested_tensor": _other("a nested one"),
    "torch._utils._rebuild_qtensor": _other("a quantized one"),
    "torch._utils._rebuild_meta_tensor_no_storage": _other("one without data"),
    "torch._utils._rebuild_device_tensor_from_numpy": _other("one of another device's own"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _other("one of another device's own"),
    "torch._utils._rebuild_wrapper_subclass": _other("one of a class of its own, as DTensor"),
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.Parameter": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered,
}
