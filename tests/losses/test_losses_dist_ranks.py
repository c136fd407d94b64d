"""DIST over two processes under DDP: parameters get the gradient of one process with the whole
batch.
"""

import gc
import os
import sys
from pathlib import Path

import torch
import torch.distributed as distributed
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distill.losses.dist import dist
from distill.losses.hard import cross_entropy

NUM_RANKS, BATCH, CLASSES = 2, 6, 10


def inputs(dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    model = nn.Linear(5, CLASSES, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=dtype))
    features = torch.randn(NUM_RANKS * BATCH, 5, generator=draw, dtype=dtype)
    features[BATCH:] *= 3  # ranks must differ in their statistics, or not gathering would pass
    teacher = torch.randn(NUM_RANKS * BATCH, CLASSES, generator=draw, dtype=dtype) * 2
    teacher[:, 4] = -50  # nearly no probability
    labels = torch.randn(NUM_RANKS * BATCH, CLASSES, generator=draw, dtype=dtype).softmax(-1)
    return model, features, teacher, labels


def step(
    model: nn.Module,
    features: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    gather: bool,
) -> dict:
    """A loss of the rank's samples plus a loss of all samples, as an objective has them. Collective
    with `gather`, in the group of all processes.
    """
    group = distributed.group.WORLD if gather else None
    logits = model(features)
    soft = dist(logits, teacher, beta=1.5, gamma=0.7, temperature=2.0, group=group)
    (cross_entropy(logits, labels) + soft).backward()
    return {
        "loss": soft.detach(),
        "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]),
    }


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=NUM_RANKS
    )
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    results = {}
    for dtype in (torch.float64, torch.float32):
        for gather in (True, False):
            model, *tensors = inputs(dtype)
            results[dtype, gather] = step(
                DistributedDataParallel(model), *(t[own] for t in tensors), gather=gather
            )
    torch.save(results, f"{folder}/{rank}.pt")
    # DDP lies in reference cycles and holds the group: left to the interpreter's exit, gloo's
    # threads once aborted there.
    gc.collect()
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def test_two_ranks_get_the_gradient_of_one(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=NUM_RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(NUM_RANKS)]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        alone = step(*inputs(dtype), gather=False)
        for rank in ranks:
            error = (rank[dtype, True]["gradient"] - alone["gradient"]).abs().max() / alone[
                "gradient"
            ].abs().max()
            assert error < tolerance
        mean_loss = sum(rank[dtype, True]["loss"] for rank in ranks) / NUM_RANKS
        assert (mean_loss - alone["loss"]).abs() < tolerance

    apart = (
        ranks[0][torch.float64, False]["gradient"]
        - step(*inputs(torch.float64), gather=False)["gradient"]
    ).abs()
    assert apart.max() > 1e-3, (
        "without gathering the batch of a process shapes the loss; the test must see that"
    )
