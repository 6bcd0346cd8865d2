# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: λ as a coefficient card of a few KB, weights as safetensors."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mdft_fast.checkpoints import write_tensors
from mdft_fast.errors import MdftError
from mdft_fast.files import check_regular, read_text, replacing, write_json
from mdft_fast.json_checksums import CHECKSUM, check_content, with_checksum
from mdft_fast.model import Granularity, Held, MetaModel, build_backbone
from mdft_fast.pool import Pool, check_fits

_FORMAT = "mdft_fast coefficient card"
_VERSION = 1
_ROW_VERSION = 2  # names stand for several columns, λ is base64: an older reader must not guess
_KEYS = (
    *("format", "version", "granularity", "pool_checksum", "columns", "rows", "coefficients"),
    "about",
)


@dataclasses.dataclass(frozen=True, eq=False)
class CoefficientCard:
    """λ by task and column name: with its pool, a whole model.

    Attributes:
        coefficients: λ, float32 ``[K, L]``.
        tasks: names of its rows: the tasks', or whose the pool's vectors are.
        columns: names of its columns.
        rows: how many columns each name stands for, one a row; None: one each.
        granularity: which tensors share a column.
        pool_checksum: of the pool that it belongs to.
        about: recipe, metrics, whatever a reader should know; plain JSON values.
        source: what errors call it; the file, where it was read from one.
        notes: what should be known of that file, one sentence each.
    """

    coefficients: Tensor
    tasks: tuple[str, ...]
    columns: tuple[str, ...]
    granularity: Granularity
    pool_checksum: str
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = "coefficient card"
    rows: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(meta: MetaModel, about: Mapping[str, Any] | None = None) -> CoefficientCard:
        """Returns the card of a meta-model at its present λ."""
        return CoefficientCard(
            meta.coefficients.detach().cpu().clone(),
            meta.pool.vector_names,
            meta.layout.columns,
            meta.granularity,
            meta.pool.checksum,
            about or {},
            rows=meta.layout.rows,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, whole or not at all; numbers are as short as float32 allows.

        With λ per row each task's are base64 of little-endian float32, row after row of the names
        in ``columns``: half a million numbers are for no eye, and 2 MB in place of 6.
        """
        numbers = self.coefficients.numpy()
        card = {
            "format": _FORMAT,
            "version": _VERSION if self.rows is None else _ROW_VERSION,
            "granularity": self.granularity,
            "pool_checksum": self.pool_checksum,
            "columns": list(self.columns),
            **({} if self.rows is None else {"rows": list(self.rows)}),
            "coefficients": {
                task: _shortest(of_task) if self.rows is None else _base64(of_task)
                for task, of_task in zip(self.tasks, numbers, strict=True)
            },
            "about": dict(self.about),
        }
        write_json(path, with_checksum(card))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> CoefficientCard:
        """Reads a card.

        Raises:
            MdftError: if the file is no card, one of an unknown version, or not as it was written.
        """
        try:
            card = json.loads(read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            raise MdftError(f"{path}: not a readable coefficient card: {error}") from None
        if not isinstance(card, dict) or card.get("format") != _FORMAT:
            raise MdftError(f"{path}: must be a coefficient card, got another file")
        if card.get("version") not in (_VERSION, _ROW_VERSION):
            wanted = f"{_VERSION} or {_ROW_VERSION}"
            raise MdftError(f"{path}: version must be {wanted}, got {card.get('version')!r}")
        check_content(path, card, _KEYS)
        unchecked = f"{path}: carries no {CHECKSUM}, so that a change of its numbers is not noticed"
        notes = () if CHECKSUM in card else (unchecked,)
        try:
            numbers, columns = card["coefficients"], tuple(card["columns"])
            rows = tuple(card["rows"]) if card["version"] == _ROW_VERSION else None
            read = _from_list if rows is None else _from_base64
            matrix = torch.stack([read(numbers[task]) for task in numbers])
            L = len(columns) if rows is None else sum(rows)
            if matrix.shape != (len(numbers), L) or not matrix.isfinite().all():
                raise ValueError(f"coefficients {list(matrix.shape)} for {L} columns")
            return CoefficientCard(
                matrix, tuple(numbers), columns, card["granularity"], card["pool_checksum"],
                dict(card.get("about", {})), str(path), rows, notes,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise MdftError(f"{path}: damaged coefficient card: {error!r}") from None

    def meta_model(
        self, pool: Pool, backbone: nn.Module, device: torch.device | str | None = None
    ) -> MetaModel:
        """Returns the meta-model at this λ.

        Raises:
            MdftError: if the pool is not the one that the card belongs to.
        """
        if pool.checksum != self.pool_checksum:
            raise MdftError(
                f"{self.source}: pool_checksum must be the given pool's, "
                f"{pool.checksum[:12]}..., got {self.pool_checksum[:12]}..."
            )
        meta = MetaModel(backbone, pool, granularity=self.granularity, device=device)
        columns = meta.layout.columns, meta.layout.rows
        if sorted(self.tasks) != sorted(pool.vector_names) or (self.columns, self.rows) != columns:
            raise MdftError(
                f"{self.source}: tasks and columns must be the pool's ({list(pool.vector_names)}, "
                f"{len(meta.layout.columns)} columns), got {list(self.tasks)} and "
                f"{len(self.columns)} columns"
            )
        # By name: whoever sorts the file's keys has not changed the model.
        rows = [self.tasks.index(name) for name in pool.vector_names]
        meta.set_coefficients(self.coefficients[rows])
        return meta


def _shortest(numbers: np.ndarray[Any, Any]) -> list[float]:
    """Returns the shortest decimals that read back as the same float32."""
    return [float(np.format_float_scientific(x, unique=True)) for x in numbers]


def _base64(numbers: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode("ascii")


def _from_list(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")


def _from_base64(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), "<f4").copy())


def save_model(meta: MetaModel, path: str | os.PathLike[str]) -> None:
    """Writes the merged weights, and all that is needed to build the module again.

    Args:
        meta: the meta-model; its weights at the present λ are written in float32.
        path: a ``.safetensors`` file; it appears whole or not at all.

    Merges tensor by tensor: one of them is in memory.
    """
    spec = meta.pool.backbone_spec
    about = {"format": "pt", "producer": "mdft_fast", "pool_checksum": meta.pool.checksum}
    about["backbone"] = json.dumps(dict(spec))
    with replacing(path) as temporary:
        entries = sorted(meta.entries(), key=lambda item: -item.dtype.itemsize)
        write_tensors(temporary, entries, metadata=about)


def load(path: str | os.PathLike[str], *, pool: Pool | str | os.PathLike[str] | None = None,
         backbone: nn.Module | None = None) -> nn.Module:  # fmt: skip
    """Loads a saved model as a plain module in eval mode, its weights bit for bit as saved.

    Args:
        path: a ``.safetensors`` file of :func:`save_model`, or a coefficient card (``.json``).
        pool: the card's pool, or the folder of a packed one.
        backbone: the module to fill (a copy is made); None: built from what the file or the pool
            says.

    Raises:
        MdftError: if the file is damaged, its pool is missing or another one, or keys don't fit.
    """
    if Path(path).suffix == ".json":
        card = CoefficientCard.load(path)
        if pool is None:
            raise MdftError(f"{path}: a coefficient card needs its pool; pass pool=...")
        opened = pool if isinstance(pool, Pool) else Pool.open(pool)
        module = backbone
        if module is None:
            module = _built(opened.backbone_spec, Held.by(opened))
        return card.meta_model(opened, module).materialize()
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        hint = "a card (.json) or a safetensors file of mdft_fast is wanted; see mdft inspect"
        raise MdftError(f"{path}: not a readable safetensors file: {error}; {hint}") from None
    if backbone is None and "backbone" not in about:
        raise MdftError(f"{path}: does not say its backbone; pass backbone=...")
    if backbone is not None:
        module = copy.deepcopy(backbone)
    else:
        held = Held(len(state), sum(tensor.numel() for tensor in state.values()))
        module = _built(_spec(path, about), held)
    module.float()  # as saved
    check_fits(path, state, module.state_dict())
    module.load_state_dict(state)
    return module.eval()


def _built(spec: Mapping[str, Any], held: Held) -> nn.Module:
    with torch.device("cpu"):
        return build_backbone(spec, held)


def _spec(path: str | os.PathLike[str], about: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a file says of its backbone; it is a stranger's word, and checked as such."""
    try:
        spec = json.loads(about["backbone"])
    except ValueError as error:
        raise MdftError(f"{path}: its backbone must be JSON, got {error}") from None
    if not isinstance(spec, dict):
        raise MdftError(f"{path}: its backbone must be a mapping, got {spec!r}")
    return spec
