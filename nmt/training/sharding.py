"""A model dealt out over the workers: each keeps its share of weights, gradients, moments and averages.

torch's fully_shard (FSDP2) gathers the weights of a part of the model where they are computed with, and sums its
gradients to whoever keeps them. What it keeps of a weight is a plain tensor to the optimiser, the averages and the
gradients' buffer, which work on shares as they do on all. A checkpoint holds whole tensors: a run may go on with
another number of workers, dealt out or not.

Every worker has to compute as many micro-batches as the others: those that have none left compute an idle one, which
has no target pieces and so adds nothing. For the same reason none is computed in parts.

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", stage 3;
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from nmt.architectures import architecture
from nmt.batches import MicroBatch
from nmt.checkpoint import (
    AVERAGES_FILE,
    OPTIMIZER_FILE,
    CheckpointConfig,
    Content,
    TrainState,
    load_training,
    training_content,
)
from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.objective import objective
from nmt.objectives.supervised import Loss
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, clip, trained_parameters
from nmt.training.step import World


class Sharding:
    """How a model's weights are dealt out over the workers of a world of several. All of them make it at once.

    From then on `trained` has this worker's shares of what is trained, in the order of the model's parameters, whose
    memory is what torch gathers weights from. The model stands on the device of the world.
    """

    def __init__(self, model: Seq2Seq, world: World) -> None:
        # To read whole weights into, in the host's memory.
        self._whole = copy.deepcopy(model)
        self._device, self._writes = world.device, world.rank == 0
        self._mesh = init_device_mesh(world.device.type, (world.size,))
        self._root = _Root(model)
        wanted = [id(parameter) for parameter in trained_parameters(model)]
        places = [i for i, parameter in enumerate(model.parameters()) if id(parameter) in wanted]
        for part in (*architecture(model.config.architecture).layers(model), model.encoder, model.decoder):
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=self._mesh)
                if part is model.decoder:
                    register_fsdp_forward_method(part, "start")
        fully_shard(self._root, mesh=self._mesh, reshard_after_forward=False)
        for module in self._root.modules():
            if isinstance(module, FSDPModule):  # an update's gradient is a sum, whatever the number of workers
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self._dealt = [cast(DTensor, parameter) for parameter in model.parameters()]
        self._trained = [self._dealt[place] for place in places]
        self.trained = [nn.Parameter(parameter.to_local().detach()) for parameter in self._trained]

    def objective(
        self, model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None, config: TrainConfig, update: int
    ) -> Loss:
        """Return what `objective` does of the model that is dealt out. All workers compute, and go back, as often."""
        assert model is self._root.model
        loss: Loss = self._root(batch, generator, config, update)
        return loss

    def gradients(self) -> FlatGradients:
        """Return the buffer of the gradients of this worker's shares, into which torch adds the sums over all."""
        return _ShardedGradients(self)

    def take_gradients(self) -> None:
        """Let the gradients of the model's weights be those of `trained`."""
        for parameter, share in zip(self._trained, self.trained):
            assert share.grad is not None
            parameter.grad = self._as_dealt(share.grad, parameter)

    @contextlib.contextmanager
    def whole(self, *, computes: bool) -> Iterator[Seq2Seq]:
        """Give the model with whole weights for the time of a `with` block, which all workers enter.

        Where it `computes` they all have it on the device, else the worker of rank 0 alone, in the host's memory.
        """
        try:
            yield self._gathered(computes or self._writes).to(self._device if computes else torch.device("cpu"))
        finally:
            self._whole.cpu()

    def training_content(
        self, optimizer: torch.optim.Optimizer, averages: Averages | None, config: CheckpointConfig, state: TrainState
    ) -> Content | None:
        """Return what training continues from, as one process without shares has it, to the worker of rank 0.

        All workers call it; the others help to gather, and keep nothing.
        """
        content = training_content(self._gathered(self._writes), optimizer, averages, config, state)
        for file in (OPTIMIZER_FILE, AVERAGES_FILE):
            for name, tensor in content.tensors.get(file, {}).items():
                if tensor.dim():  # what is no count of updates
                    dealt = self._as_dealt(tensor, self._trained[int(name.partition("/")[0])])
                    whole = dealt.full_tensor()
                    if self._writes:
                        content.tensors[file][name] = whole.cpu()
        return content if self._writes else None

    def load_training(
        self, folder: Path, optimizer: torch.optim.Optimizer, averages: Averages | None, tokenizer: str
    ) -> TrainState:
        """Return the state of training, having put this worker's shares of a checkpoint in place; as the function."""
        state = load_training(folder, self._whole, optimizer, averages, tokenizer, self._share)
        with torch.no_grad():
            for parameter, dealt in zip(self._whole.parameters(), self._dealt):
                dealt.to_local().copy_(self._part(parameter, dealt))
        return state

    @torch.no_grad()
    def _gathered(self, keeps: bool) -> Seq2Seq:
        """Return the model in the host's memory, with the weights as they are now where this worker keeps them."""
        for parameter, dealt in zip(self._whole.parameters(), self._dealt):
            weight = dealt.full_tensor()  # by all workers together
            if keeps:
                parameter.copy_(weight)
        return self._whole

    def _share(self, number: int, whole: Tensor) -> Tensor:
        """Return this worker's share of what belongs to a trained weight, by its number."""
        return self._part(whole, self._trained[number]) if whole.dim() else whole

    def _part(self, whole: Tensor, dealt: DTensor) -> Tensor:
        found = distribute_tensor(whole.to(self._device), self._mesh, dealt.placements, src_data_rank=None)
        return found.to_local().detach()

    def _as_dealt(self, share: Tensor, like: DTensor) -> DTensor:
        return DTensor.from_local(
            share, self._mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )


class _Root(nn.Module):
    """The objective as the forward pass of a module: torch gathers all weights that the parts do not have for it."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch, generator: torch.Generator | None, config: TrainConfig, update: int) -> Loss:
        return objective(self.model, batch, generator, config, update)


class _ShardedGradients(FlatGradients):
    """The gradients of this worker's shares, summed over all workers as the backward pass goes on."""

    def __init__(self, sharding: Sharding) -> None:
        super().__init__(sharding.trained)
        sharding.take_gradients()

    def undivided(self) -> str | None:
        return "where the model is dealt out, all workers compute the same number of them"

    def clip(self, max_norm: float | None, max_value: float | None) -> float:
        return clip(self.gradients, max_norm, max_value, _norm_of_all)

    def _sum_over_workers(self) -> None:
        dist.all_reduce(self.buffer[self.gradients.numel() :])


def _norm_of_all(share: Tensor) -> float:
    squares = torch.linalg.vector_norm(share, dtype=torch.float64).square()
    dist.all_reduce(squares)
    return math.sqrt(float(squares))
