# SPDX-License-Identifier: Apache-2.0
"""The sections of a recipe, as frozen models with the keys of the YAML file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    SkipValidation,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from mdft_fast import model
from mdft_fast.app.recipe.dataclass_sections import DataclassSection, filled_from
from mdft_fast.app.recipe.sample_sections import AdaptData, EvaluateData
from mdft_fast.app.recipe.value_types import (
    Bytes,
    FilePath,
    NameOrList,
    PerChannel,
    PixelSize,
    Section,
    TaskName,
    Text,
    Texts,
    Wanted,
    WhichTasks,
    located,
    problem,
)
from mdft_fast.arena import Codec
from mdft_fast.checkpoints import LEAST_CROP, Interpolation, Resize, Weights
from mdft_fast.data import Role
from mdft_fast.errors import MdftError
from mdft_fast.learning import ConstructConfig, OptimizerConfig, SpecializeConfig, StageConfig
from mdft_fast.methods import METHODS, Method, Transform, entry_of, method_of
from mdft_fast.options import options
from mdft_fast.pool import Buffers

_OFF = "off"


class PoolSource(Section):
    """Where the models are: a base and a folder of checkpoints, or a packed pool.

    Attributes:
        base: the pre-trained model, a file or folder.
        models: folder of the fine-tuned models. For every task it holds one file `<task>.<suffix>`
            or folder `<task>`.
        folder: a packed pool, in place of the two.
        weights: ema or raw, where a file has both; null: what its own library takes, which is said.
        part: of the models' files: the key of the state dict that is meant, or what its names begin
            with; null: the only one that there is.
        ignore: patterns, with * and ?, of tensors that the checkpoints have and the backbone lacks.
        buffers: same: what is not merged, such as BatchNorm's statistics, must be equal in all
            models; base: the base's is used.
    """

    base: FilePath | None = None
    models: FilePath | None = None
    folder: FilePath | None = None
    weights: Weights | None = None
    part: Text | None = None
    ignore: Texts = ()
    buffers: Buffers = "same"


class Backbone(Section):
    """The module whose parameters are merged.

    Attributes:
        library: who builds it: timm, open_clip or transformers.
        name: the library's name of the model. For open_clip also `VisionTransformer`, with the
            tower's own arguments and `quick_gelu`; for transformers one of four classes.
        kwargs: further arguments of the library's builder.
    """

    library: Text
    name: Text
    kwargs: dict[str, Any] = Field(default_factory=dict)


class Preprocess(Section):
    """How an image becomes an input.

    Attributes:
        size: pixels: one number or [height, width]. Image files of another size are resized once,
            arrays are refused.
        mean: on the scale 0 to 1; one number or one a channel.
        std: on the scale 0 to 1, above 0; likewise.
        resize: how images of another size come to this one; null: the pool's or the base's, else
            shortest. shortest: the shortest edge, then the center is cut out; squash: both edges.
        interpolation: of the resizing, antialiased; null: the pool's or the base's, else bicubic.
        crop_pct: share of the resized edges that is cut out; null: the pool's or the base's, else
            1. As timm says it: `resize` goes to floor(size / crop_pct).
    """

    size: PixelSize
    mean: PerChannel
    std: PerChannel
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    crop_pct: Annotated[float, Interval(ge=LEAST_CROP, le=1)] | None = None

    def said(self) -> dict[str, Any]:
        """Returns the keys that are not null."""
        return self.model_dump(exclude_none=True)


class ZeroShot(Section):
    """A head made of class names by CLIP's text tower.

    Attributes:
        model: open_clip's name of the model.
        weights: its checkpoint, a local file with open_clip's names.
        classes: names as prompts have them, in the order of the labels; null: those of the data
            set that the task is named for, else the task's class names.
        templates: prompts with `{}` for the name; null: those of the data set of `classes`, else
            `a photo of a {}.`.
    """

    model: Text
    weights: FilePath
    classes: NameOrList | None = None
    templates: NameOrList | None = None


class Prototypes(EvaluateData):
    """A head made of the base's features of labelled images, given for that purpose alone.

    Attributes:
        npz: file of the labelled images: exactly one of npz, folder, torchvision, hf. These
            labels make the head, and nothing else; these images must not be the test images.
        y: the npz file's array of labels.
        scale: what cosines are multiplied by.
        normalize: whether features are divided by their norm; false: the nearest class mean.
    """

    scale: Annotated[float, Interval(gt=0)] = 20.0
    normalize: bool = True
    _role: ClassVar[Role] = "train"


class HeadSource(Section):
    """A task's classifier: exactly one of ``file``, ``zero_shot`` and ``prototypes``.

    Attributes:
        file: file with `weight` [C, D] and maybe `bias` [C]; task_vectors' `head_<Task>.pt` too.
        normalize: of a file: whether the features are divided by their norm first; null: as the
            file says. Only `head_<Task>.pt` does.
    """

    file: FilePath | None = None
    normalize: bool | None = None
    zero_shot: ZeroShot | None = None
    prototypes: Prototypes | None = None


class TaskRecipe(Section):
    """One task.

    Attributes:
        name: a name, unique; it names the checkpoint and the folder of results. Not `average`.
        head: the classifier; normalize: whether it reads features at length 1.
        adapt: unlabelled samples: an array uint8 [n, H, W, 3], or a folder of images.
        evaluate: labelled samples, to measure accuracy at the end; nothing is learned from them.
        class_names: one name a class, in the data's order; null: the packed pool's, the data's
            (folders of classes, the data set, the array `class_names`), else plain numbers.
    """

    name: TaskName
    head: HeadSource | None = None
    adapt: AdaptData
    evaluate: EvaluateData | None = None
    class_names: Texts | None = None


@filled_from(StageConfig)
class Memory(DataclassSection):
    """How the weights are held; `mdft plan` shows what each choice takes.

    Attributes:
        mode: where merged weights live, auto is the fastest that fits.
        codec: how task vectors are stored. Of a packed pool fp32 is as it was packed.
        budget: what a step's tensors may take; null: what is free. Python and torch themselves
            are not counted.
        checkpointing: whether each block's activations are computed again in backward.
        blocks: modules that are blocks; null: what a number in parameters' names marks.
    """

    mode: Literal["auto", model.Mode] = "auto"
    codec: Codec = "fp32"
    budget: Bytes | None = None
    checkpointing: bool = False
    micro_batch: int | None
    blocks: Texts | None = None
    cuda_graph: bool


@filled_from(OptimizerConfig)
class Optimizer(DataclassSection):
    """The optimiser of λ."""

    name: str
    lr: float
    schedule: str


@filled_from(ConstructConfig, entropy="use_entropy")
class Objective(DataclassSection):
    """Equations (2), (3) and (5)."""

    alpha: float
    entropy: bool
    reweight: str


@filled_from(ConstructConfig, enabled="filter")
class Filter(DataclassSection):
    """Equation (4)."""

    enabled: bool
    mu: float
    entropy_of: str


@filled_from(ConstructConfig)
class Construct(DataclassSection):
    """Stage 1: one model for all tasks."""

    steps: int
    batch: int
    draw: str
    objective: Objective = Objective.default()
    filter: Filter = Filter.default()
    optimizer: Optimizer
    holdout: float


@filled_from(SpecializeConfig)
class Specialize(DataclassSection):
    """Stage 2: one model a task.

    Attributes:
        tasks: which tasks get a specialized model: all, none or a list of names.
        control: whether stage 2 is run from task arithmetic too, without stage 1. It shows what
            of stage 2's result is owed to stage 1.
    """

    tasks: WhichTasks = "all"
    steps: int
    batch: int
    representation: str
    optimizer: Optimizer
    control: bool = False


class Curve(Section):
    """Accuracy along stage 2; the word `off`: none.

    Attributes:
        samples: test samples a task, the same ones at each step; and as many of all other tasks
            together, of which the first and the last step are measured. 0: no curve.
        steps: of stage 2; the first and the last are measured in any case.
    """

    samples: Annotated[int, Interval(ge=0)] = 256
    steps: Annotated[tuple[Annotated[int, Interval(ge=0)], ...], Field(strict=False)] = (
        *(0, 1, 2, 5, 10, 20),
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if value is None:  # `curve:` alone says nothing
            return {}
        return {"samples": 0} if value == _OFF else value

    @model_serializer(mode="wrap")
    def _written(self, plain: SerializerFunctionWrapHandler) -> Any:
        return plain(self) if self.samples else _OFF


class Evaluation(Section):
    """What is measured once λ is learned, on labelled samples.

    Attributes:
        limit: test samples a task, the same ones in each run; null: all.
        curve: accuracy along stage 2.
    """

    limit: Annotated[int, Interval(ge=1)] | None = None
    curve: Curve = Curve()


def _samples(value: Any) -> int | str | None:
    """Returns a number of samples, or the word all; None for what is neither."""
    return value if value == "all" or (type(value) is int and value > 0) else None


SampleCount = Annotated[SkipValidation[int | str], Wanted("1 or more, or all", _samples)]


Granularity = model.Granularity


def _transform(entry: Any, info: ValidationInfo) -> Transform:
    """Returns the method that an item of ``transform`` names; paths start at the recipe."""
    try:
        method = entry if isinstance(entry, Method) else method_of(entry, METHODS)
    except MdftError as error:
        raise problem(str(error)) from None
    if not isinstance(method, Transform):
        raise problem(f"{method.name}: must be a transform, K vectors in and K out, got a merge")
    paths = [option.name for option in options(type(method)) if option.type is Path]
    return replace(method, **{name: located(getattr(method, name), info) for name in paths})


_Transform = Annotated[Transform, SkipValidation, BeforeValidator(_transform)]
Transforms = Annotated[
    tuple[Annotated[_Transform, PlainSerializer(entry_of)], ...], Field(strict=False)
]
