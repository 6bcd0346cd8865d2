# SPDX-License-Identifier: Apache-2.0
"""A recipe whose λ starts from a merge: run, resume, export, pack, plan."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdft_fast import CoefficientCard, MdftError, Pool, load, plan, run
from mdft_fast.app.cli import export_model
from mdft_fast.app.cli.actions import measure_model, specialize_run
from mdft_fast.app.opening import build, pack
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running.run_folder import RunFolder
from mdft_fast.methods import METHODS, InputMerge, Merge, Site, TaskInputs, Watch
from mdft_fast.model import split
from tests.app.conftest import Make, card, in_pool, metrics, run_until

SHORT = ["specialize.tasks=[letters]"]


@dataclasses.dataclass(frozen=True)
class Mean(Merge):
    """The mean.

    Attributes:
        scale: what it is multiplied by.
    """

    scale: float = 1.0

    name = "mean"
    source = "a test"
    round_off = 1.0  # what another machine's sums would change

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        return self.scale * self.round_off * deltas.mean(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(InputMerge):
    """The first task's vector; counts what it was shown."""

    name = "counted"
    source = "a test"
    seen = {}  # noqa: RUF012 - what a test asks for

    def merge_model(
        self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs], watch: Watch
    ) -> Mapping[str, Tensor]:
        self.seen.update({one.name: len(one.samples) for one in inputs})
        row = pool.vectors.decode()[0]
        return dict(zip(pool.layout.columns, pool.layout.views(row), strict=True))


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mean", Mean)
    monkeypatch.setitem(METHODS, "counted", Counted)
    Counted.seen.clear()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Moves to a machine where the merge, made again, differs by round-off."""
    return lambda: monkeypatch.setattr(Mean, "round_off", 1 + 2**-20)


def state(folder: Path, name: str) -> Tensor:
    """Returns a stage's path of λ, ``[steps + 1, K, L]``."""
    path: Tensor = torch.load(folder / "state" / f"{name}.pt", weights_only=True)["path"]
    return path


def test_a_run_starts_from_the_merge(make_recipe: Make) -> None:
    summary = run(make_recipe("start={method: mean, scale: 0.5}"), progress="off")
    folder, result = summary.folder, summary.result
    assert result["pool"]["vectors"] == ["mean", "shapes", "letters"]
    assert result["pool"]["start"] == "mean"
    assert [p["name"] for p in result["phases"]][2:5] == ["samples", "teachers", "start"]
    assert [row["name"] for row in result["compared"]] == [
        "pretrained", "task_arithmetic", "start", "meta", "individual", "control", "specialized",
    ]  # fmt: skip
    assert set(result["accuracy"]) == {row["name"] for row in result["compared"]}
    compared = {"meta-start", "meta-task_arithmetic", "specialized-control"}
    assert set(result["comparisons"]) == compared
    first = state(folder, "construct")
    assert first[0, 0].eq(1).all()
    assert first[0, 1:].eq(0).all()
    control = state(folder, "control-letters")[0]
    assert control[0].eq(0).all()
    assert control[1:].eq(torch.tensor(0.3)).all()
    away = state(folder, "specialize-letters")[-1].clone()
    away[2] -= 1  # from λ = e_k: letters' row is the third
    assert result["specialize"]["letters"][-1]["distance"] == pytest.approx(float(away.norm()))
    assert CoefficientCard.load(folder / "meta" / "card.json").tasks == (
        "mean",
        *("shapes", "letters"),
    )


def test_its_measures_are_the_merges_own(make_recipe: Make, tmp_path: Path) -> None:
    from_merge = run(make_recipe("start=mean", f"output={tmp_path / 'a'}"), progress="off").result
    half = run(make_recipe("start=0.5", f"output={tmp_path / 'b'}"), progress="off").result
    assert from_merge["holdout"]["start"] == pytest.approx(half["holdout"]["start"], rel=1e-5)
    for name in ("pretrained", "task_arithmetic", "individual", "control"):
        assert from_merge["accuracy"][name] == half["accuracy"][name], name
    assert "start" not in half["accuracy"]
    assert not {"vectors", "start"} & half["pool"].keys()
    assert "shares" not in half


def test_shares_are_lengths_over_their_sum(make_recipe: Make) -> None:
    recipe = make_recipe("start=mean", *SHORT)
    summary = run(recipe, progress="off")
    shares = summary.result["shares"]
    built = build(recipe)
    tau = built.pool.vectors.decode().double()
    tau = torch.cat([tau.mean(0, keepdim=True), tau])
    for which, at in (
        (shares["construct"], card(summary.folder)),
        (shares["specialize"]["letters"], card(summary.folder, "specialized/letters")),
    ):
        squares = torch.zeros(3, len(shares["blocks"]))
        for slot, column in zip(built.pool.layout.slots, at.T, strict=True):
            start = slot.tile * 1024
            part = column[:, None].double() * tau[:, start : start + slot.numel]
            name = slot.name
            block = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else None
            outside = "stem" if start < built.pool.layout.slots[20].tile * 1024 else "tail"
            squares[:, shares["blocks"].index(block or outside)] += part.square().sum(1)
        lengths, whole = squares.sqrt(), squares.sum(1).sqrt()
        assert which["whole"] == pytest.approx((whole / whole.sum()).tolist(), rel=1e-4)
        wanted = (lengths / lengths.sum(0)).T
        assert torch.allclose(torch.tensor(which["blocks"]), wanted, atol=1e-4)


def _stop_before(what: str) -> Callable[[Recipe], None]:
    def stop(recipe: Recipe) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(RunFolder, what, interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(recipe, progress="off")

    return stop


def _stop_at(step: int) -> Callable[[Recipe], None]:
    return lambda recipe: run_until(step, recipe)


@pytest.mark.parametrize(
    ("stop", "codec", "kept"),
    [
        (_stop_before("begin"), "int8", {"recipe.yaml", "start.safetensors"}),  # between phases
        (_stop_at(2), "fp32", None),
        (_stop_at(6), "int8", None),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit_elsewhere(
    stop: Callable[[Recipe], None],
    codec: str,
    kept: set[str] | None,
    make_recipe: Make,
    tmp_path: Path,
    elsewhere: Callable[[], None],
) -> None:
    keys = ["start=mean", f"memory.codec={codec}", *SHORT]
    whole = run(make_recipe(*keys, f"output={tmp_path / 'whole'}"), progress="off")
    recipe = make_recipe(*keys, f"output={tmp_path / 'stopped'}")
    stop(recipe)
    assert kept is None or {path.name for path in recipe.output.iterdir()} == kept
    elsewhere()
    resumed = run(Recipe.load(recipe.output / "recipe.yaml"), resume=True, progress="off")
    for name in ("meta", "specialized/letters"):
        one, other = (
            CoefficientCard.load(folder / name / "card.json")
            for folder in (whole.folder, resumed.folder)
        )
        assert torch.equal(one.coefficients, other.coefficients)
        assert one.pool_checksum == other.pool_checksum
    assert resumed.result["accuracy"] == whole.result["accuracy"]
    lines = metrics(resumed.folder)
    assert len(lines) == len({(line["stage"], line["step"]) for line in lines}) == 4 + 2 * 3


def test_a_run_stopped_while_the_start_is_made_leaves_nothing(make_recipe: Make) -> None:
    recipe = make_recipe("start=mean", "specialize.tasks=none")
    _stop_before("claim")(recipe)
    assert not recipe.output.exists()
    run(recipe, progress="off")


def test_a_finished_run_is_opened_with_its_own_start(
    make_recipe: Make, tmp_path: Path, elsewhere: Callable[[], None]
) -> None:
    folder = run(make_recipe("start=mean"), progress="off").folder
    accuracy = json.loads((folder / "result.json").read_text())["accuracy"]
    before = load(folder / "meta" / "model.safetensors").state_dict()
    elsewhere()
    export_model(folder, tmp_path / "meta.safetensors", None, None)
    export_model(folder, tmp_path / "letters.safetensors", "letters", None)
    after = load(tmp_path / "meta.safetensors").state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    measured = measure_model(folder / "meta" / "card.json", folder / "recipe.yaml", [])
    assert measured == pytest.approx(accuracy["meta"])
    specialize_run(folder, "letters", [], tmp_path / "card.json")
    again = CoefficientCard.load(tmp_path / "card.json")
    assert torch.equal(again.coefficients, card(folder, "specialized/letters"))
    moved = tmp_path / "moved"
    folder.rename(moved)
    export_model(moved, tmp_path / "again.safetensors", None, None)
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "meta.safetensors"
    ).read_bytes()


def _change_an_element(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, r"start.safetensors: missing: the run's start is taken from there"),
        (_change_an_element, r"start.safetensors: sha256 must be \w{64}, got \w{64}: the file ch"),
        (_cut_short, r"start.safetensors: not a readable safetensors file"),
    ],
)
def test_a_changed_or_missing_start_is_refused(
    damage: Callable[[Path], None], words: str, make_recipe: Make, tmp_path: Path
) -> None:
    recipe = make_recipe("start=mean", *SHORT)
    folder = run(recipe, progress="off").folder
    damage(folder / "start.safetensors")
    for open_again in (
        lambda: run(recipe, resume=True, progress="off"),
        lambda: export_model(folder, tmp_path / "meta.safetensors", None, None),
        lambda: specialize_run(folder, "letters", [], tmp_path / "card.json"),
        lambda: measure_model(folder / "meta" / "card.json", folder / "recipe.yaml", []),
    ):
        with pytest.raises(MdftError, match=words):
            open_again()


def test_a_start_sees_the_samples_to_learn_from_alone(
    make_recipe: Make, tmp_path: Path, tasks: Any, files: Path
) -> None:
    keys = ["start={method: counted, samples: 1000}", "construct.holdout=0.3", "seed=5"]
    recipe = make_recipe(*keys, "specialize.tasks=none")
    folder = run(recipe, progress="off").folder
    splits = json.loads((folder / "splits.json").read_text())["tasks"]
    for task in splits:
        assert Counted.seen[task["name"]] == len(task["learn"]) == 28
        assert task["learn"] == split(40, 0.3, 5, task["name"])[0].tolist()
    run(recipe, resume=True, progress="off")
    (folder / "splits.json").unlink()  # as if stopped before the teachers, and the data changed
    for task in tasks:
        task["adapt"]["x"] = "x_test"
        task.pop("evaluate")
    changed = make_recipe(*keys, "specialize.tasks=none", f"tasks={json.dumps(tasks)}")
    (folder / "recipe.yaml").write_text(changed.dump())
    with pytest.raises(MdftError, match=r"start.safetensors: samples must be what the run was"):
        run(changed, resume=True, progress="off")


def test_a_packed_start_is_rounded_once(make_recipe: Make, tmp_path: Path) -> None:
    exact = pack(make_recipe("start=mean"), tmp_path / "exact", start=True)
    pool = pack(make_recipe("start=mean", "memory.codec=int8"), tmp_path / "pool", start=True)
    assert (pool.start, pool.K, pool.codec) == ("mean", 3, "int8")
    assert pool.checksum == exact.encode("int8").checksum


def test_a_packed_start_gives_the_same_run(make_recipe: Make, tmp_path: Path) -> None:
    keys = ["start=mean", "specialize.tasks=none"]
    pool = pack(make_recipe("start=mean"), tmp_path / "pool", start=True)
    first = run(make_recipe(*keys, f"output={tmp_path / 'a'}"), progress="off")
    packed = make_recipe(*keys, *in_pool(tmp_path / "pool"), f"output={tmp_path / 'b'}")
    second = run(packed, progress="off")
    assert not (second.folder / "start.safetensors").exists(), "the pool has it"
    assert "start" not in [phase["name"] for phase in second.result["phases"]]
    assert torch.equal(card(first.folder), card(second.folder))
    assert first.result["pool"]["checksum"] == second.result["pool"]["checksum"] == pool.checksum
    export_model(second.folder, tmp_path / "meta.safetensors", None, None)
    assert pack(packed, tmp_path / "copied", start=True).checksum == pool.checksum


def test_another_start_than_the_packed_one_is_refused(make_recipe: Make, tmp_path: Path) -> None:
    pack(make_recipe("start=mean"), tmp_path / "pool", start=True)
    folder = in_pool(tmp_path / "pool")
    words = r"recipe: start must be the packed pool's, which says \('start by mean\(scale=1.0\)',\)"
    for other in ("{method: mean, scale: 2}", "counted", "0.3"):
        with pytest.raises(MdftError, match=rf"{words}.*got "):
            build(make_recipe(f"start={other}", *folder))
        with pytest.raises(MdftError, match=words):
            plan(make_recipe(f"start={other}", *folder))
    with pytest.raises(MdftError, match=r"transform must be absent, as the packed pool has a st"):
        build(make_recipe("start=mean", "transform=[ties]", *folder))
    numbers = build(make_recipe("start=[1, 0.1, 0.2]", *folder)).meta_model()
    assert numbers.coefficients[:, 0].tolist() == pytest.approx([1, 0.1, 0.2])


def test_a_packed_start_is_of_one_split(make_recipe: Make, tmp_path: Path) -> None:
    pack(make_recipe("start=counted"), tmp_path / "pool", start=True)
    assert set(Counted.seen.values()) == {32}
    folder = in_pool(tmp_path / "pool")
    assert build(make_recipe("start=counted", *folder)).pool.start == "counted"
    with pytest.raises(MdftError, match=r"seed=0\)'.*got counted.*seed=1\)"):
        build(make_recipe("start=counted", "seed=1", *folder))


def test_the_plan_counts_and_names_it(make_recipe: Make, tmp_path: Path) -> None:
    mode = "memory.mode=resident"
    plain, merge = (plan(make_recipe(mode, *k), every=False) for k in ([], ["start=mean"]))
    assert (plain.start, merge.start) == ("", "mean(scale=1.0)")
    assert merge.chosen.vectors == 3 * plain.chosen.vectors // 2
    pack(make_recipe(), tmp_path / "plain", start=True)
    pack(make_recipe("start=mean"), tmp_path / "started", start=True)
    made, packed = (
        plan(make_recipe("start=mean", mode, *in_pool(tmp_path / name)), every=False).chosen
        for name in ("plain", "started")
    )
    assert made.vectors == packed.vectors == merge.chosen.vectors
    assert (made.away, packed.away) == (False, True), "made, the vectors are in memory"


def test_the_merge_sees_transformed_vectors(make_recipe: Make, tmp_path: Path) -> None:
    keys = ["transform=[{ties: {density: 0.4}}]", "start=mean", "specialize.tasks=none"]
    pool = pack(make_recipe(*keys), tmp_path / "pool", start=True)
    assert pool.methods == ("ties(density=0.4)", "start by mean(scale=1.0)")
    assert torch.allclose(pool.vectors.codes[0], pool.vectors.codes[1:].mean(0), atol=1e-7)
    summary = run(make_recipe(*keys), progress="off")
    assert summary.result["pool"]["checksum"] == pool.checksum
    export_model(summary.folder, tmp_path / "meta.safetensors", None, None)


def test_a_meta_model_is_not_made_without_the_start(make_recipe: Make) -> None:
    with pytest.raises(MdftError, match="start must be made before the meta-model"):
        build(make_recipe("start=mean")).meta_model()
