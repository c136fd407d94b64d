"""Streams of a run on several processes: lanes, cache, and which shards are fetched next."""

import os
from collections.abc import Callable
from functools import partial

import numpy as np

from distill.data.loading.rank_slice import RankSlice
from distill.data.order.lanes import LaneOrder
from distill.data.order.shuffled import TrainOrder
from distill.data.sources import Source
from distill.data.stream.transport import Transport
from distill.errors import InputError
from distill.recipe import schema
from distill.training.plan import Plan, StagePlan
from distill.training.share import share_of_process


def check_streams(plan: Plan, num_processes: int, processes_here: int) -> None:
    """Check that the cache holds what the processes of this machine read at once.

    Args:
        num_processes, processes_here: processes of the run, and of this machine.

    Raises:
        InputError: names numbers that work.
    """
    for stage in plan.stages:
        if isinstance(stage.order, LaneOrder):
            lanes = _lanes_of_a_machine(plan, stage.order, num_processes, processes_here)
            _check_cache(stage, stage.order, lanes)


def _lanes_of_a_machine(
    plan: Plan, order: LaneOrder, num_processes: int, processes_here: int
) -> int:
    """The most lanes that the processes of one machine read."""
    train = plan.recipe.train
    share = share_of_process(train.batch_size_global, train.micro_batch_size, num_processes)
    most = 0
    for first in range(0, num_processes, processes_here):
        slots = [
            RankSlice(rank, num_processes, share.micro_batch_size, share.num_forwards).slots(micro)
            for rank in range(first, min(first + processes_here, num_processes))
            for micro in range(share.num_forwards)
        ]
        most = max(most, order.num_lanes_of(np.concatenate(slots)))
    return most


def _check_cache(stage: StagePlan, order: LaneOrder, lanes: int) -> None:
    """Raises InputError if the cache is too small. Local tar shards do not use it."""
    size = _mean_cached_size(stage.source, stage.recipe.data.shards)
    if size is None:
        return
    num_shards = order.shards_at_once(lanes)
    needed_gb, limit_gb = num_shards * size / 1e9, stage.recipe.data.shards.cache_gb
    if needed_gb > limit_gb:
        # Below half a shard a smaller block saves little: each lane uses at least one shard.
        smaller = (
            f"a smaller {stage.key}data.train.block than {order.block:,}, "
            if num_shards > 2 * lanes
            else ""
        )
        raise InputError(
            f"data.shards.cache_gb: {limit_gb:g}, and the {lanes} lanes that this machine reads"
            f" have about {num_shards} shards in use at once, {needed_gb:.3g} GB of"
            f" {stage.source.shards[0].display_url} and others: set it to {needed_gb * 1.2:.2g} or"
            f" more, or take {smaller}fewer lanes, more machines or smaller shards (distill data"
            " shard)"
        )


def _mean_cached_size(source: Source, settings: schema.ShardsSpec) -> float | None:
    """Bytes of a cached shard: the mean of the listed sizes, or the size of the first one. None if
    no shard is cached, or its size is unknown.
    """
    cached = [
        shard
        for shard in source.shards
        if not shard.is_local or shard.url.lower().endswith(".parquet")
    ]
    sizes = [os.path.getsize(shard.url) if shard.is_local else shard.size_bytes for shard in cached]
    if known := [size for size in sizes if size]:
        return sum(known) / len(known)
    if not cached:
        return None
    try:
        return Transport(retries=settings.retries, timeout_s=settings.timeout_s).size(cached[0].url)
    except OSError:  # the first read reports it
        return None


def fetch_ahead(
    source: Source, order: TrainOrder, end: int
) -> Callable[[int, np.ndarray], None] | None:
    """A function that prefetches the shards after a step, up to the step `end` of the order; None
    for a source without shards.
    """
    if isinstance(order, LaneOrder):
        return partial(_fetch_ahead, source, order, end)
    return None


def _fetch_ahead(source: Source, order: LaneOrder, end: int, step: int, slots: np.ndarray) -> None:
    source.prefetch(order.shards_ahead(step, slots, end).tolist())
