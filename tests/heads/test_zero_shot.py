# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mdft_fast.errors import MdftError
from mdft_fast.heads import DATASETS, class_names, load_clip, templates, zero_shot_head
from tests.checkpoints.corpus import Call, save_encoder, tiny_clip

open_clip = pytest.importorskip("open_clip")

Clip = tuple[Any, Any]  # a model and its tokenizer
NAMES = ("cat", "a dog, maybe", "Ünïcödé — 猫", "{} 16.4 C/V", "zwölf Äpfel", "7")
TEMPLATES = ("a photo of a {}.", 'the number: "{}"!', "{}")
# Two orders of the same float32 sums over at most 32 terms and 3 templates.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.mark.parametrize("at_once", [1, 4, 10])
@pytest.mark.parametrize("theirs_at_once", [None, 1, 10])
def test_is_open_clips_classifier(clip: Clip, at_once: int, theirs_at_once: int | None) -> None:
    head = zero_shot_head(*clip, NAMES, TEMPLATES, classes_at_once=at_once)
    theirs = open_clip.build_zero_shot_classifier(*clip, NAMES, TEMPLATES, theirs_at_once)
    torch.testing.assert_close(head.weight, theirs.T, **TOLERANCE)
    x = torch.randn(5, 64)
    wanted = clip[0].logit_scale.exp() * F.normalize(x, dim=-1) @ theirs
    torch.testing.assert_close(head(x), wanted.detach(), rtol=1e-5, atol=1e-4)


def test_is_its_definition_in_float64(clip: Clip) -> None:
    model, tokenizer = copy.deepcopy(clip[0]).double(), clip[1]
    head = zero_shot_head(model, tokenizer, NAMES, TEMPLATES)
    for name, row in zip(NAMES, head.weight, strict=True):
        prompts = tokenizer([t.replace("{}", name) for t in TEMPLATES])
        with torch.no_grad():
            mean = F.normalize(model.encode_text(prompts), dim=-1).mean(dim=0)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-12, atol=1e-12)
    assert head.normalize
    assert head.scale == pytest.approx(torch.tensor(3.7, dtype=torch.float32).double().exp())


def test_rows_have_length_1_and_no_gradient(clip: Clip) -> None:
    head = zero_shot_head(*clip, NAMES, TEMPLATES)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(6))
    assert not head.weight.requires_grad
    assert head.weight.is_contiguous()


def test_one_class_and_one_template(clip: Clip) -> None:
    head = zero_shot_head(*clip, ["cat"], ["a {}."])
    with torch.no_grad():
        wanted = F.normalize(clip[0].encode_text(clip[1](["a cat."])), dim=-1)
    torch.testing.assert_close(head.weight, wanted, **TOLERANCE)


def test_the_model_is_as_it_was(clip: Clip) -> None:
    before = {name: t.clone() for name, t in clip[0].state_dict().items()}
    zero_shot_head(*clip, NAMES, TEMPLATES)
    assert all(torch.equal(t, before[name]) for name, t in clip[0].state_dict().items())
    assert all(p.requires_grad for p in clip[0].parameters())


@pytest.mark.parametrize(
    ("names", "prompts", "message"),
    [
        ([], ["{}"], r"class_names must be a list of one or more texts, got \[\]"),
        ("cat", ["{}"], "class_names must be a list .*got 'cat'"),
        (["cat", " "], ["{}"], "class_names must be a list"),
        (["cat", "dog", "cat"], ["{}"], "class_names must differ.*'cat' twice"),
        (["cat"], [], "templates must be a list of one or more"),
        (["cat"], "{}", "templates must be a list"),
        (["cat"], ["a photo"], r"must hold {} once.*got 'a photo'"),
        (["cat"], ["{} and {}"], r"must hold {} once"),
        (["cat"], ["{0.__class__}{}"], r"no other braces, got '{0.__class__}{}'"),
        (["cat"], ["{{}}"], r"no other braces"),
    ],
)
def test_bad_words_are_named(clip: Clip, names: Any, prompts: Any, message: str) -> None:
    with pytest.raises(MdftError, match=message):
        zero_shot_head(*clip, names, prompts)


def test_a_model_that_is_none_is_refused(clip: Clip) -> None:
    with pytest.raises(MdftError, match=r"model must be an open_clip model.*got Linear"):
        zero_shot_head(torch.nn.Linear(2, 2), clip[1], NAMES, TEMPLATES)
    with pytest.raises(MdftError, match="must be in eval mode, got training"):
        zero_shot_head(copy.deepcopy(clip[0]).train(), clip[1], NAMES, TEMPLATES)
    with pytest.raises(MdftError, match="classes_at_once must be 1 or more, got 0"):
        zero_shot_head(*clip, NAMES, TEMPLATES, classes_at_once=0)
    broken = copy.deepcopy(clip[0])
    broken.text_projection.data[:] = torch.nan
    with pytest.raises(MdftError, match="must be finite, got NaN or inf for 'cat'"):
        zero_shot_head(broken, clip[1], NAMES, TEMPLATES)


def test_the_vocabularies_go_through(clip: Clip) -> None:
    head = zero_shot_head(*clip, class_names("gtsrb"), templates("gtsrb"))
    assert head.weight.shape == (43, 64)
    assert len(head.weight.unique(dim=0)) == 43


def test_a_prompt_that_would_be_cut_is_refused(clip: Clip) -> None:
    fits, cut = ("dog " * 74).strip(), ("dog " * 75).strip()
    assert len(zero_shot_head(*clip, [fits], ["a {}"]).weight) == 1
    with pytest.raises(MdftError, match=r"77 tokens or fewer, got 78: 'a dog dog .*"):
        zero_shot_head(*clip, ["cat", cut], ["{}", "a {}"])
    ends = clip[1]([f"a {fits}", f"a {cut}"])
    assert (ends[:, -1] == clip[1].eot_token_id).all()  # the library says nothing


def test_a_tokenizer_of_any_kind_will_do(clip: Clip) -> None:
    plain = zero_shot_head(clip[0], lambda texts: clip[1](texts), NAMES, TEMPLATES)
    assert torch.equal(plain.weight, zero_shot_head(*clip, NAMES, TEMPLATES).weight)


@pytest.mark.parametrize("dataset", DATASETS)
def test_no_prompt_of_the_vocabularies_is_cut(clip: Clip, dataset: str) -> None:
    texts = [t.format(name) for t in templates(dataset) for name in class_names(dataset)]
    assert max(len(clip[1].encode(text)) for text in texts) + 2 <= 77


# Loading a checkpoint.


def test_loads_the_text_tower_alone(clip: Clip, clip_name: str, weights: Path) -> None:
    state = torch.random.get_rng_state()
    model, tokenizer = load_clip(clip_name, weights)
    assert torch.equal(torch.random.get_rng_state(), state)
    ours = zero_shot_head(model, tokenizer, NAMES, TEMPLATES)
    assert torch.equal(ours.weight, zero_shot_head(*clip, NAMES, TEMPLATES).weight)
    assert ours.scale == pytest.approx(float(clip[0].logit_scale.detach().double().exp()))


def test_loads_what_people_have(clip: Clip, clip_name: str, tmp_path: Path) -> None:
    state = clip[0].state_dict()
    wanted = zero_shot_head(*clip, NAMES, TEMPLATES).weight
    half = {k: v.half() for k, v in state.items()}
    extras = {"input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}
    for i, content in enumerate(
        [
            state,
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
            {**state, **extras, "logit_scale": state["logit_scale"].reshape(1)},
            {k: v for k, v in state.items() if not k.startswith("visual.")},
        ]
    ):
        torch.save(content, tmp_path / f"{i}.pt")
        model, tokenizer = load_clip(clip_name, tmp_path / f"{i}.pt")
        assert torch.equal(zero_shot_head(model, tokenizer, NAMES, TEMPLATES).weight, wanted)
    save_file({k: v.contiguous() for k, v in half.items()}, tmp_path / "half.safetensors")
    model, tokenizer = load_clip(clip_name, tmp_path / "half.safetensors")
    found = zero_shot_head(model, tokenizer, NAMES, TEMPLATES).weight
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.01)


def test_a_tower_of_its_own_reads_the_plain_names(clip: Clip, weights: Path) -> None:
    model, tokenizer = load_clip("mdft-test-clip-custom", weights)
    found = zero_shot_head(model, tokenizer, NAMES, TEMPLATES)
    torch.testing.assert_close(
        found.weight, zero_shot_head(*clip, NAMES, TEMPLATES).weight, **TOLERANCE
    )


CANARY = Call(Path.touch, Path("canary"))


def bad_files(state: dict[str, Any], folder: Path) -> dict[str, tuple[Callable[[Path], Any], str]]:
    text = {k: v for k, v in state.items() if not k.startswith("visual.")}
    lacks = r"tensors of open_clip's mdft-test-clip.*got a file that lacks '.*\d+ missing"

    def script(file: Path) -> None:
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)

    return {
        "module.pt": (lambda f: torch.save(torch.nn.Linear(2, 2), f), lacks),
        "canary.pt": (lambda f: torch.save({"a": CANARY}, f), "must hold tensors by name"),
        "plain.pkl": (
            lambda f: f.write_bytes(pickle.dumps(CANARY)),
            "a pickle that torch.save did not write",
        ),
        "script.pt": (script, lacks),
        "cut.pt": (lambda f: f.write_bytes(b"PK\3\4 and no more"), "damaged"),
        "cut.safetensors": (lambda f: f.write_bytes(b"\0" * 9), "not a readable safetensors"),
        "list.pt": (
            lambda f: torch.save([1, 2], f),
            "must hold a state dict or a module, got a list",
        ),
        "empty.pt": (lambda f: torch.save({}, f), "must hold tensors by name"),
        "words.pt": (lambda f: torch.save({"a": "b"}, f), "must hold tensors by name"),
        "vision.pt": (lambda f: torch.save({"visual.proj": torch.ones(2)}, f), lacks),
        "more.pt": (
            lambda f: torch.save({**text, "text_decoder.x": torch.ones(1)}, f),
            r"got a file that holds 'text_decoder.x' \(0 missing, 1 extra\)",
        ),
        "wide.pt": (
            lambda f: torch.save({**text, "text_projection": torch.ones(32, 5)}, f),
            r"'text_projection' must be \[32, 64\] as in open_clip's .*got \[32, 5\]",
        ),
        "absent.pt": (lambda f: None, "no such file"),
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_bad_checkpoint_is_one_clear_error_and_nothing_is_run(
    clip: Clip, clip_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (write, message) in bad_files(clip[0].state_dict(), tmp_path).items():
        write(tmp_path / name)
        with pytest.raises(MdftError, match=f"{name}: .*{message}"):
            load_clip(clip_name, tmp_path / name)
    assert not (tmp_path / "canary").exists()
    with open("plain.pkl", "rb") as file:  # the canary would have sung
        pickle.load(file)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23", r"got 'ViT-B-23'; did you mean 'ViT-"),
        ("hf-hub:somebody/model", "got 'hf-hub:somebody/model'"),
        ("local-dir:.", "must be one of open_clip.list_models"),
        ("mdft-test-clip-remote", "whose own would be downloaded"),
        ("ViT-B-16-SigLIP", "whose own would be downloaded"),
        ("xlm-roberta-base-ViT-B-32", "whose own would be downloaded"),
    ],
)
def test_a_model_that_is_not_here_is_refused(
    clip_name: str, weights: Path, name: str, message: str
) -> None:
    with pytest.raises(MdftError, match=message):
        load_clip(name, weights)


def test_without_open_clip_it_says_how_to_get_it(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError):
        importlib.import_module("open_clip")
    with pytest.raises(MdftError, match=r"pip install 'mdft-fast\[clip\]'"):
        zero_shot_head(*clip, NAMES, TEMPLATES)


def test_the_checkpoint_is_read_and_not_changed(clip_name: str, weights: Path) -> None:
    before = load_file(weights)
    load_clip(clip_name, weights)
    after = load_file(weights)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_activation_that_is_not_the_models_is_refused(clip_name: str, tmp_path: Path) -> None:
    save_encoder(tmp_path / "quick.pt", tiny_clip())  # it says QuickGELU, and the model has GELU
    with pytest.raises(
        MdftError, match=f"quick.pt: its activation is 'quick_gelu', and {clip_name}"
    ):
        load_clip(clip_name, tmp_path / "quick.pt")
