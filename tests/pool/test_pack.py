# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mdft_fast.arena import TILE
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head, Pool
from tests.pool.conftest import tiny_parts


def test_arena_follows_the_backbones_parameters(parts: Any) -> None:
    pool = parts.build()
    wanted = [n for n, p in parts.options["backbone"].named_parameters() if p.requires_grad]
    assert list(pool.column_names) == wanted
    assert pool.K == 3
    assert pool.names == ("task0", "task1", "task2")
    assert pool.vectors.codes.shape == (3, pool.N)
    assert repr(pool).startswith("Pool(K=3, tensors=10, N=")
    assert pool.parameters == sum(parts.base[n].numel() for n in wanted)
    for view, name in zip(pool.layout.views(pool.base), wanted, strict=True):
        assert torch.equal(view, parts.base[name].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_base_plus_task_vector_is_the_model(dtype: torch.dtype) -> None:
    parts = tiny_parts(dtype=dtype)
    if dtype == torch.float32:
        parts.base["gain"] = torch.tensor(1.0)
        parts.models[0]["gain"] = torch.tensor(1e-9)
    pool = parts.build()
    eps = torch.finfo(torch.float32).eps
    for k, model in enumerate(parts.models):
        merged = pool.layout.views(pool.base + pool.vectors.codes[k])
        for name, tensor in zip(pool.column_names, merged, strict=True):
            if dtype == torch.float16:  # differences of fp16 numbers are exact in float32
                assert torch.equal(tensor.to(dtype), model[name])
                assert torch.equal(tensor, model[name].float())
            theta, base = model[name], parts.base[name]
            # One rounding of the difference, one of the sum.
            bound = eps / 2 * ((theta - base).abs() + theta.abs()).float()
            assert ((tensor - theta.float()).abs() <= bound * (1 + eps)).all()
        if dtype == torch.float16:
            assert pool.tasks[k].round_off == 0
    if dtype == torch.float32:
        assert pool.tasks[0].round_off == pytest.approx(1e-9)
        assert "task0: 2 classes, base + task vector within 1e-09" in pool.describe()


def test_padding_is_zero(parts: Any) -> None:
    pool = parts.build()
    used = torch.zeros(pool.N, dtype=torch.bool)
    for slot in pool.layout.slots:
        used[slot.tile * TILE : slot.tile * TILE + slot.numel] = True
    assert not used.all()
    assert not pool.base[~used].any()
    assert not pool.vectors.codes[:, ~used].any()


def test_says_what_is_left_out_and_why(parts: Any) -> None:
    pool = parts.build()
    assert pool.left_out == {
        "again.weight": "tied to 'embed.weight'",
        "frozen": "frozen by the user (requires_grad=False)",
        "shift": "buffer",
        "index": "buffer (torch.int64)",
    }
    assert set(pool.buffers) == {"frozen", "shift", "index"}
    assert pool.dtypes["out.weight"] == "float16"
    assert pool.dtypes["index"] == "int64"
    assert "again.weight: tied to 'embed.weight'" in pool.describe()


def test_sources_of_every_kind_give_one_pool(parts: Any, files: Any) -> None:
    in_memory = parts.build()
    assert files.build().checksum == in_memory.checksum
    backbone = parts.options["backbone"]
    module = type(backbone)().half()
    module.load_state_dict(parts.models[1])
    parts.models = {"task2": parts.models[2], "task1": module, "task0": files.models["task0"]}
    parts.base["frozen"] = parts.base["frozen"].half()
    parts.base["shift"] = parts.base["shift"].half()
    parts.models["task2"] = {
        k: v.half() if v.is_floating_point() else v for k, v in parts.models["task2"].items()
    }
    del parts.models["task0"]
    parts.tasks = parts.tasks[1:]
    pool = parts.build()
    assert torch.equal(pool.vectors.codes, in_memory.vectors.codes[1:])


def test_changes_nothing_of_the_callers(parts: Any) -> None:
    backbone = parts.options["backbone"].train()
    states = [parts.base, *parts.models, backbone.state_dict()]
    before = [{n: t.clone() for n, t in state.items()} for state in states]
    generator = torch.get_rng_state()
    pool = parts.build()
    pool.base.fill_(7)
    pool.buffers["shift"].fill_(7)
    for state, old in zip(states, before, strict=True):
        assert list(state) == list(old)
        assert all(torch.equal(state[n], old[n]) for n in old)
    assert backbone.training
    assert all(p.grad is None for p in backbone.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_tied_copy_may_be_absent_and_either_name_will_do(parts: Any) -> None:
    wanted = parts.build().checksum
    del parts.base["again.weight"]
    del parts.models[0]["embed.weight"]
    assert parts.build().checksum == wanted


def test_integer_buffers_may_be_absent(parts: Any) -> None:
    del parts.base["index"]
    assert "index" not in parts.build().buffers


def test_ignored_keys_are_listed(parts: Any) -> None:
    parts.models[1]["classifier.weight"] = torch.zeros(2, 4)
    parts.options["ignore"] = ["classifier.*"]
    left_out = parts.build().left_out
    assert left_out["classifier.weight"] == "not in the backbone; ignored by pattern 'classifier.*'"


def test_buffers_of_the_base_are_used_only_when_asked_and_noted(parts: Any) -> None:
    parts.models[1]["shift"] = torch.ones(4)
    parts.options["buffers"] = "base"
    pool = parts.build()
    assert torch.equal(pool.buffers["shift"], parts.base["shift"])
    assert len(pool.notes) == 1
    assert "'shift'" in pool.notes[0]
    assert "1 of 3 models" in pool.notes[0]


def test_batch_norms_counter_may_differ_but_not_its_statistics() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten())
    base = {n: t.clone() for n, t in backbone.state_dict().items()}
    model = {n: t.clone() for n, t in base.items()}
    model["0.weight"] += 1
    model["1.num_batches_tracked"] += 5
    task = type("T", (), {"name": "t", "class_names": ("a",), "head": Head(torch.ones(1, 16))})()
    options: dict[str, Any] = {"backbone": backbone, "preprocess": {"size": 2, "mean": 0, "std": 1}}
    assert Pool.from_checkpoints(base, [model], [task], **options).K == 1
    model["1.running_var"] += 1
    with pytest.raises(Exception, match=r"task 't'.*'1.running_var' \(buffer\) must equal base"):
        Pool.from_checkpoints(base, [model], [task], **options)


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_what_the_base_alone_has_was_not_trained(prefix: str, parts: Any) -> None:
    wanted = parts.build()
    for model in parts.models:  # all of them, and a whole module
        for name in ("wide.weight", "wide.bias", "shift"):
            del model[name]
    models = [{prefix + name: t for name, t in model.items()} for model in parts.models]
    parts.models = models
    parts.base["pooler.weight"] = torch.ones(3)
    pool = parts.build()
    assert pool.left_out["pooler.weight"] == (
        "not in the backbone nor in any model; the base alone has it"
    )
    assert "no model has tensor 'shift', nor 2 others" in pool.notes[0]
    for slot in pool.layout.slots:
        part = pool.vectors.of_slot(slot).codes
        if slot.name.startswith("wide."):
            assert not part.any()
        else:
            assert torch.equal(part, wanted.vectors.of_slot(slot).codes)


def test_what_one_model_lacks_or_half_of_all_is_an_error(parts: Any) -> None:
    del parts.models[1]["wide.weight"]
    with pytest.raises(MdftError, match=r"task1.*: tensor 'wide.weight' of the backbone is miss"):
        parts.build()
    parts.models = [{k: m[k] for k in ("embed.weight", "gain")} for m in parts.models]
    with pytest.raises(MdftError, match=r"is missing \(\d+ of \d+ are\)"):
        parts.build()


def test_what_is_missing_is_named_behind_its_prefix(parts: Any) -> None:
    parts.models[2] = {f"vit.{k}": t for k, t in parts.models[2].items() if k != "norm.bias"}
    with pytest.raises(MdftError, match=r"'norm.bias' of the backbone is missing behind 'vit\.'$"):
        parts.build()


def test_a_narrow_base_is_subtracted_as_it_is(parts: Any) -> None:
    floats = {n: t.float() if t.is_floating_point() else t for n, t in parts.base.items()}
    base = parts.base
    for model in parts.models:
        model.update({n: t.float() for n, t in model.items() if t.is_floating_point()})
    pool = parts.build()
    parts.base = floats
    wanted = parts.build()
    assert base["out.weight"].dtype == torch.float16
    assert torch.equal(pool.vectors.codes, wanted.vectors.codes)
    assert pool.dtypes["out.weight"] == "float32"
    parts.base = {n: t.bfloat16() if t.is_floating_point() else t for n, t in base.items()}
    parts.models[0] = {n: t.half() if t.is_floating_point() else t for n, t in base.items()}
    with pytest.raises(MdftError, match=r"mixed dtypes: .*bfloat16 as in base .*or wider, got "):
        parts.build()


def test_a_part_is_the_models_and_weights_are_everybodys(parts: Any, tmp_path: Any) -> None:
    wanted = parts.build().checksum
    other = {n: torch.zeros_like(t) for n, t in parts.base.items()}
    for i, model in enumerate(parts.models):
        torch.save({"ours": {"net": model}, "theirs": other}, tmp_path / f"{i}.pt")
    parts.models = [tmp_path / f"{i}.pt" for i in range(3)]
    parts.options["part"] = "ours"
    torch.save({"model": other, "ema": parts.base}, tmp_path / "base.pt")
    parts.base = tmp_path / "base.pt"
    with pytest.raises(MdftError, match=r"base.pt: holds several versions of one model"):
        parts.build()
    parts.options["weights"] = "ema"
    assert parts.build().checksum == wanted


def test_float64_is_rounded_and_noted() -> None:
    pool = tiny_parts(dtype=torch.float64).build()
    assert pool.base.dtype == torch.float32
    assert any("float64" in note for note in pool.notes)
