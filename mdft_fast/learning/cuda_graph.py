# SPDX-License-Identifier: Apache-2.0
"""One step of a stage as a CUDA graph: recorded once, then replayed with other samples.

A step launches thousands of kernels from Python; where they are short, the device waits for the
host. A replay is one launch. Recorded are merge, forward, heads, losses, backward, dots and the
optimizer's update; before each replay the step's inputs, row numbers and learning rate are copied
to where the graph reads them. All that needs the host's eyes stays outside: the draw of samples,
λ's path, callbacks.

What of it has run: see docs/kernels.md, "What has run where".
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mdft_fast.errors import MdftError
from mdft_fast.learning.learner import Learner
from mdft_fast.learning.objectives import Inputs, Losses
from mdft_fast.model import MetaModel, each, tensors_of

_WARM_UPS = 3  # as in torch's own examples: libraries choose and load their kernels meanwhile

Run = Callable[[], None]


class CudaCapture:
    """Records what a function launches, by ``torch.cuda.CUDAGraph``, and launches it again.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, run: Run) -> None:
        """Calls a function a few times, so that what is made once is made before the recording."""
        # on a stream of its own, as a recording needs
        current, beside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                run()
        current.wait_stream(beside)

    def record(self, run: Run) -> None:
        """Calls a function once; what it launches is recorded, nothing of it runs."""
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, stream=stream):
            run()

    def replay(self) -> None:
        """Runs what was recorded, on the current stream."""
        self._graph.replay()


class StepGraph:
    """Updates λ as :meth:`Learner.update` does, by a replay.

    Args:
        learner: whose λ it is, made with ``capturable=True``.
        compute: from a step's inputs to its losses. What it launches must depend on the inputs'
            shapes alone, and it must not wait for the device.
        capture: records and replays.
    """

    def __init__(
        self, learner: Learner, compute: Callable[[Inputs], Losses], capture: CudaCapture
    ) -> None:
        self._learner, self._compute, self._capture = learner, compute, capture
        self._memory: tuple[Inputs, Losses] | None = None  # what the graph reads and writes

    def update(self, inputs: Inputs) -> Losses:
        """Makes one update of λ; records the graph on the first call.

        Raises:
            MdftError: if the inputs have other shapes than the first ones.
        """
        if self._memory is None:
            self._memory = self._record(inputs)
        held, losses = self._memory
        _copy(inputs, held)
        self._capture.replay()
        return Losses(*(result.clone() for result in losses))  # the next replay writes there

    def _record(self, inputs: Inputs) -> tuple[Inputs, Losses]:
        """Makes the memory that the graph knows, and the graph. λ stays as it is."""
        held = Inputs(each(torch.clone, inputs.batch), tuple(rows.clone() for rows in inputs.rows))
        losses = Losses.zeros(len(inputs.rows), self._learner.meta.coefficients.device)

        def run() -> None:
            made = self._compute(held)
            self._learner.update([made.loss.sum()])
            for to, result in zip(losses, made, strict=True):
                to.copy_(result.detach())

        with self._learner.unchanged():
            self._capture.warm_up(run)
        self._capture.record(run)
        return held, losses


def _copy(inputs: Inputs, to: Inputs) -> None:
    tensors = (*tensors_of(inputs.batch), *inputs.rows)
    for held, new in zip((*tensors_of(to.batch), *to.rows), tensors, strict=True):
        if held.shape != new.shape:
            raise MdftError(
                f"cuda_graph: a step's inputs must be {list(held.shape)} as in the first step, got "
                f"{list(new.shape)}"
            )
        held.copy_(new, non_blocking=True)


def check_capturable(meta: MetaModel) -> None:
    """Refuses a meta-model whose steps cannot be recorded.

    Raises:
        MdftError: off CUDA, or in mode "streamed".
    """
    device = meta.coefficients.device
    if device.type != "cuda":
        raise MdftError(f"cuda_graph: the meta-model must be on a CUDA device, got {device}")
    check_capturable_mode(meta.mode)


def check_capturable_mode(mode: str) -> None:
    """Refuses a memory mode whose steps cannot be recorded."""
    if mode == "streamed":
        raise MdftError(
            "cuda_graph: mode must be 'resident' or 'layerwise', got 'streamed', whose copies from "
            "the host are made anew at each step"
        )
