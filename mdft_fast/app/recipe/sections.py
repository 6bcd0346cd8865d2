# SPDX-License-Identifier: Apache-2.0
"""The sections of a recipe, as frozen models with the keys of the YAML file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mdft_fast.app.recipe.sample_sections import AdaptData, EvaluateData
from mdft_fast.app.recipe.value_types import (
    Bytes,
    FilePath,
    NameOrList,
    Number,
    PerChannel,
    PixelSize,
    Section,
    TaskName,
    Text,
    WhichTasks,
    choice,
)
from mdft_fast.checkpoints import LEAST_CROP
from mdft_fast.data import Role

Schedule = Annotated[Literal["constant", "cosine"], choice("constant", "cosine")]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[Number, Field(ge=0)]


class PoolSource(Section):
    """Where the models are: a base and a folder of checkpoints, or a packed pool.

    Attributes:
        base: the pre-trained model's file or folder.
        models: folder that holds ``<task>.safetensors``, ``<task>.pt``, ``<task>/finetuned.pt`` or
            a folder ``<task>`` for every task.
        folder: a packed pool, in place of the two.
    """

    base: FilePath | None = None
    models: FilePath | None = None
    folder: FilePath | None = None


class Backbone(Section):
    """The module whose parameters are merged.

    Attributes:
        library: who builds it, ``timm``, ``open_clip`` or ``transformers``.
        name: the library's name of the model.
        kwargs: further arguments of the library's builder.
    """

    library: Text
    name: Text
    kwargs: dict[str, Any] = Field(default_factory=dict)


class Preprocess(Section):
    """How an image becomes an input.

    Attributes:
        size: pixels, one number or [height, width].
        mean: on the scale [0, 1], one number or one a channel.
        std: on the scale [0, 1], one number or one a channel.
        resize: how images of another size come to this one; null: the pool's, else shortest.
        interpolation: of the resizing; null: the pool's, else bicubic.
        crop_pct: share of the resized edges that is cut out; null: the pool's, else 1.
    """

    size: PixelSize
    mean: PerChannel
    std: PerChannel
    resize: Annotated[Literal["shortest", "squash"], choice("shortest", "squash")] | None = None
    interpolation: (
        Annotated[Literal["bicubic", "bilinear"], choice("bicubic", "bilinear")] | None
    ) = None
    crop_pct: Annotated[Number, Field(ge=LEAST_CROP, le=1)] | None = None

    def said(self) -> dict[str, Any]:
        """Returns the keys that are not null."""
        return self.model_dump(exclude_none=True)


class ZeroShot(Section):
    """A head made of class names by CLIP's text tower.

    Attributes:
        model: open_clip's name of the model.
        weights: its checkpoint, a local file.
        classes: names in prompts, a data set's or a list; None: those of the data set that the
            task is named for, else the task's class names.
        templates: prompts with ``{}`` for the name, a data set's or a list; None: those of the
            data set of ``classes``, else "a photo of a {}.".
    """

    model: Text
    weights: FilePath
    classes: NameOrList | None = None
    templates: NameOrList | None = None


class Prototypes(EvaluateData):
    """A head made of the base's features of labelled images, given for that purpose alone.

    Attributes:
        npz: as for evaluate, and so x, y, folder, split, torchvision and hf; but what names no
            split means train.
        x: its array of images.
        folder: as for evaluate.
        split: as for evaluate.
        torchvision: as for evaluate.
        hf: as for evaluate.
        y: the file's array of labels.
        scale: what cosines are multiplied by.
        normalize: whether features are divided by their norm first.
    """

    scale: Annotated[Number, Field(gt=0)] = 20.0
    normalize: bool = True
    _role: ClassVar[Role] = "train"


class HeadSource(Section):
    """A task's classifier: exactly one of ``file``, ``zero_shot`` and ``prototypes``.

    Attributes:
        file: file with ``weight`` [C, D] and maybe ``bias`` [C]; a pickled ``head_<Task>.pt`` too.
        normalize: of a file: whether the features are divided by their norm first; None: as the
            file says.
        zero_shot: made of class names.
        prototypes: made of labelled images.
    """

    file: FilePath | None = None
    normalize: bool | None = None
    zero_shot: ZeroShot | None = None
    prototypes: Prototypes | None = None


class TaskRecipe(Section):
    """One task.

    Attributes:
        name: unique; it names the checkpoint and the folder of results.
        head: the classifier; may be left out where a packed pool holds it.
        adapt: unlabelled samples.
        evaluate: labelled test samples, if there are any.
        class_names: one name a class; where left out, the data's own or plain numbers.
    """

    name: TaskName
    head: HeadSource | None = None
    adapt: AdaptData
    evaluate: EvaluateData | None = None
    class_names: Annotated[tuple[Text, ...], Field(strict=False)] | None = None


class Memory(Section):
    """How the weights are held; `mdft plan` shows what each choice takes.

    Attributes:
        mode: where merged weights live; auto: the fastest mode that fits.
        codec: how an element of a task vector is stored.
        budget: what a run may take, 4GB or a number of bytes; null: what is free.
        checkpointing: whether each block's activations are computed again in backward.
        micro_batch: images a forward pass; null: a whole step's at once.
        blocks: modules that are blocks; null: what a number in parameters' names marks.
        cuda_graph: whether a step is recorded once and replayed (CUDA; not streamed).
    """

    mode: Annotated[
        Literal["auto", "resident", "layerwise", "streamed"],
        choice("auto", "resident", "layerwise", "streamed"),
    ] = "auto"
    codec: Annotated[
        Literal["fp32", "bf16", "fp16", "int8", "int4"],
        choice("fp32", "bf16", "fp16", "int8", "int4"),
    ] = "fp32"
    budget: Bytes | None = None
    checkpointing: bool = False
    micro_batch: Annotated[int, Field(gt=0)] | None = None
    blocks: Annotated[tuple[Text, ...], Field(strict=False)] | None = None
    cuda_graph: bool = False


class Optimizer(Section):
    """The optimiser of λ.

    Attributes:
        name: which one.
        lr: learning rate of the first step.
        schedule: how it goes on; cosine ends near 0.
    """

    name: Annotated[Literal["adam", "adamw", "sgd"], choice("adam", "adamw", "sgd")]
    lr: Annotated[Number, Field(gt=0)]
    schedule: Schedule


class Objective(Section):
    """Equation (2,3) and (5).

    Attributes:
        alpha: weight of the cross-entropy to the teacher.
        entropy: whether the meta-model's entropy is minimised too.
        reweight: γ' as written, with mean 1 over the kept samples, or 1 everywhere.
    """

    alpha: Weight
    entropy: bool
    reweight: Annotated[
        Literal["as_written", "normalized", "off"], choice("as_written", "normalized", "off")
    ]


class Filter(Section):
    """Equation (4): keep a sample iff its entropy is below μ log C.

    Attributes:
        enabled: whether samples are removed at all.
        mu: the threshold as a share of the largest entropy there is.
        entropy_of: whose entropy, the teacher's or the meta-model's at each step.
    """

    enabled: bool
    mu: Weight
    entropy_of: Annotated[Literal["teacher", "meta"], choice("teacher", "meta")]


class Construct(Section):
    """Stage 1.

    Attributes:
        steps: number of updates of λ.
        batch: samples a task and step.
        draw: "kept": every batch is drawn from the kept samples; "batch": drawn from all, then
            filtered.
        objective: what is minimised.
        filter: which samples count.
        optimizer: how.
        holdout: share of the unlabelled samples that no step sees, to measure on.
    """

    steps: Positive
    batch: Positive
    draw: Annotated[Literal["kept", "batch"], choice("kept", "batch")]
    objective: Objective
    filter: Filter
    optimizer: Optimizer
    holdout: Annotated[Number, Field(ge=0, lt=1)]


class Specialize(Section):
    """Stage 2, equation (7).

    Attributes:
        tasks: all, none or the names of those to specialize for.
        steps: number of updates of λ.
        batch: samples a step.
        representation: what is aligned.
        optimizer: how.
        control: whether to run stage 2 from task arithmetic too, without stage 1: what of its
            result is owed to stage 1?
    """

    tasks: WhichTasks
    steps: Positive
    batch: Positive
    representation: Annotated[
        Literal["encoder", "normalized", "logits"], choice("encoder", "normalized", "logits")
    ]
    optimizer: Optimizer
    control: bool


Granularity = Annotated[
    Literal["task", "block", "tensor"], choice("task", "block", "tensor", later=("row",))
]
Precision = Annotated[Literal["fp32", "bf16"], choice("fp32", "bf16")]
