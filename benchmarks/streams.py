"""The contestants of `benchmarks.streaming`, each in a process of its own: one JSON order a line on
stdin, one JSON answer a line on stdout.

The process imports, and forks for every order: so each order has a new process, and no clock
includes imports.

All read the same tars, decode with `decode` and augment with `TrainTransform` in as many workers,
one thread each, and hand over float32 batches. The peers decode while a worker puts its batch
together, and stack into one uint8 array, as ours does: the quickest way of several.

    python -m benchmarks.streams NAME
"""

import argparse
import gc
import itertools
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.trees import tree_cpu_s
from distill.data.augment import TrainTransform
from distill.data.decode import decode
from distill.data.mixing import to_unit

NAMES = ("ours", "datasets", "webdataset", "webdataset_cached")
# How each resumes after a stop; the first is the one that its documentation names.
WAYS = {
    "ours": ("first_step",),
    "datasets": ("state_dict", "skip"),
    "webdataset": ("slice",),
    "webdataset_cached": ("slice",),
}


@dataclass(frozen=True)
class Task:
    """place: the folder or URL of the shards. cache: of ours, and of webdataset with one. buffer:
    samples that the peers shuffle among.
    """

    place: str
    names: tuple[str, ...]
    num_samples: int
    num_classes: int
    extension: str
    classes: str
    cache: str
    image_size: int
    batch_size: int
    num_workers: int
    buffer: int
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples // self.batch_size

    @property
    def augment(self) -> dict[str, Any]:
        small = self.extension == "png"
        return {"crop": "padded", "padding": 2} if small else {"crop": "random_resized"}

    def urls(self) -> list[str]:
        return [f"{self.place}/{name}" for name in self.names]


class Delivered(NamedTuple):
    """images: [b, 3, H, W] float32 in [0, 1]; labels: [b] int64."""

    images: torch.Tensor
    labels: torch.Tensor


Epoch = Callable[[int], Iterator[Delivered]]  # the batches of an epoch, asked for in order


class Stopped(NamedTuple):
    """Where a run stopped. way: how it resumes. state: what was saved of it."""

    num_batches: int
    way: str
    state: Any


# ---- ours ----------------------------------------------------------------------------------------


@contextmanager
def open_ours(task: Task, stopped: Stopped | None, num_epochs: int) -> Iterator[Epoch]:
    """A run's own stream and loader, as `train` builds them."""
    from benchmarks.runs import engine_on
    from distill.recipe import Recipe
    from distill.training.build import train_loader
    from distill.training.plan import make_plan
    from distill.training.share import share_of_process

    student = {
        "model": "resnet18",
        "objective": {"hard": {"loss": "ce"}},
        "optimizer": {"name": "momentum", "lr": 0.1},
    }
    recipe = Recipe.model_validate(
        {
            "name": "stream",
            "data": {
                "train": {"kind": "stream", "path": task.place, "classes": task.classes},
                "image_size": task.image_size,
                "augment": task.augment,
                "num_workers": task.num_workers,
                "shards": {"cache": task.cache},
            },
            "students": {"any": student},
            "train": {
                # One epoch more than is taken: workers that read ahead into it take their time from
                # the last one as from the others.
                "budget": f"{task.steps_per_epoch * (num_epochs + 1)} iterations",
                "batch_size_global": task.batch_size,
                "micro_batch_size": task.batch_size,
            },
            "seed": task.seed,
        }
    )
    first_step = stopped.num_batches if stopped else 0
    with engine_on("cpu", precision="fp32", compile=False) as engine:
        plan = make_plan(recipe)
        share = share_of_process(task.batch_size, task.batch_size, 1)
        with train_loader(plan, plan.stages[0], share, engine, first_step) as loader:

            def epoch(number: int) -> Iterator[Delivered]:
                steps = task.steps_per_epoch - (first_step if number == 0 else 0)
                for batch in itertools.islice(loader, steps):
                    yield Delivered(batch.images, batch.labels)

            yield epoch


# ---- the peers -----------------------------------------------------------------------------------


class Collate:
    """Records and labels -> uint8 [b, H, W, 3] and int64 [b]; runs in a worker."""

    def __init__(self, task: Task) -> None:
        self._extension = task.extension
        self._transform = TrainTransform(image_size=task.image_size, **task.augment)

    def __call__(self, pairs: Sequence[tuple[bytes, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        side = self._transform.image_size
        images = np.empty((len(pairs), side, side, 3), dtype=np.uint8)
        for slot, (record, _) in enumerate(pairs):
            images[slot] = self._transform(decode(record))
        return torch.from_numpy(images), torch.tensor([int(label) for _, label in pairs])

    def of_dicts(self, examples: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        return self([(example[self._extension]["bytes"], example["cls"]) for example in examples])


def _workers(task: Task) -> dict[str, Any]:
    if task.num_workers == 0:
        return {"num_workers": 0}
    return {
        "num_workers": task.num_workers,
        "prefetch_factor": 2,
        "persistent_workers": True,
        "worker_init_fn": lambda _: torch.set_num_threads(1),
    }


def _unit(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[Delivered]:
    return (Delivered(to_unit(images), labels) for images, labels in batches)


def datasets_stream(task: Task) -> Any:
    """The stream of `datasets` that its documentation builds, without decoding."""
    import datasets

    datasets.disable_progress_bars()
    builder = datasets.load_dataset(
        "webdataset", data_files={"train": task.urls()}, split="train", streaming=True
    )
    return builder.decode(False).shuffle(seed=task.seed, buffer_size=task.buffer)


@contextmanager
def open_datasets(task: Task, stopped: Stopped | None, num_epochs: int) -> Iterator[Epoch]:
    """`datasets` in streaming mode, through the DataLoader that Accelerate prepares."""
    stream = datasets_stream(task)
    if stopped and stopped.way == "state_dict":
        stream.load_state_dict(stopped.state)
    elif stopped:
        stream = stream.skip(stopped.num_batches * task.batch_size)
    yield _datasets_epochs(task, stream)


def _datasets_epochs(task: Task, stream: Any) -> Epoch:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    collate = Collate(task)
    loader: Any = DataLoader(
        stream, task.batch_size, collate_fn=collate.of_dicts, drop_last=True, **_workers(task)
    )
    # By default Accelerate reads on one process and sends to the others; reading in each is
    # quicker.
    config = DataLoaderConfiguration(dispatch_batches=False)
    loader = Accelerator(cpu=True, dataloader_config=config).prepare(loader)

    def epoch(number: int) -> Iterator[Delivered]:
        stream.set_epoch(number)
        return _unit(iter(loader))

    return epoch


@contextmanager
def open_webdataset(
    task: Task, stopped: Stopped | None, num_epochs: int, cached: bool = False
) -> Iterator[Epoch]:
    """WebDataset, shuffled by shards and through a buffer, batched in the worker, behind a
    WebLoader.
    """
    wds: Any = import_module("webdataset")
    if cached:
        Path(task.cache).mkdir(parents=True, exist_ok=True)
    stages = wds.WebDataset(
        task.urls(),
        shardshuffle=len(task.names),
        detshuffle=True,
        seed=task.seed,
        cache_dir=task.cache if cached else None,
        empty_check=False,
    ).compose(wds.detshuffle(task.buffer, seed=task.seed))
    if stopped:
        stages = stages.slice(stopped.num_batches * task.batch_size, None)
    stages = stages.to_tuple(task.extension, "cls").batched(
        task.batch_size, collation_fn=Collate(task), partial=False
    )
    loader = wds.WebLoader(stages, batch_size=None, **_workers(task))
    yield lambda number: _unit(iter(loader))


@contextmanager
def open_webdataset_cached(task: Task, stopped: Stopped | None, num_epochs: int) -> Iterator[Epoch]:
    """The same, with a cache of whole shards."""
    with open_webdataset(task, stopped, num_epochs, cached=True) as epoch:
        yield epoch


_OPEN: dict[str, Callable[[Task, Stopped | None, int], AbstractContextManager[Epoch]]] = {
    "ours": open_ours,
    "datasets": open_datasets,
    "webdataset": open_webdataset,
    "webdataset_cached": open_webdataset_cached,
}


# ---- orders --------------------------------------------------------------------------------------


def run_epochs(name: str, task: Task, num_epochs: int) -> dict[str, Any]:
    """Epochs from opening on. images, wall_s, cpu_s (of all processes): of each. first_batch_s:
    from opening to the first batch.
    """
    images, seconds = [0] * num_epochs, []
    first_batch_s = None
    start = time.perf_counter()
    before = np.array([start, tree_cpu_s(os.getpid())])
    with _OPEN[name](task, None, num_epochs) as epoch:
        for number in range(num_epochs):
            for batch in epoch(number):
                assert batch.images.shape[1:] == (
                    3,
                    task.image_size,
                    task.image_size,
                ), batch.images.shape
                assert batch.images.dtype == torch.float32
                images[number] += len(batch.labels)
                first_batch_s = first_batch_s or time.perf_counter() - start
            now = np.array([time.perf_counter(), tree_cpu_s(os.getpid())])
            seconds.append(now - before)
            before = now
    wall_s, cpu_s = np.array(seconds).T.tolist()
    return {"images": images, "wall_s": wall_s, "cpu_s": cpu_s, "first_batch_s": first_batch_s}


def run_and_stop(name: str, task: Task, num_batches: int) -> dict[str, Any]:
    """The first batches of an epoch. labels: what they held. state: what `datasets` keeps for
    later.
    """
    if name == "datasets":
        stream = datasets_stream(task)
        batches = itertools.islice(_datasets_epochs(task, stream)(0), num_batches)
        labels = [label for batch in batches for label in batch.labels.tolist()]
        return {"labels": labels, "state": stream.state_dict()}
    with _OPEN[name](task, None, 1) as epoch:
        batches = itertools.islice(epoch(0), num_batches)
        return {
            "labels": [label for batch in batches for label in batch.labels.tolist()],
            "state": None,
        }


def resume(name: str, task: Task, stopped: Stopped) -> dict[str, Any]:
    """The rest of that epoch. seconds: from opening to its first batch, or to its end where none
    came.
    """
    start = time.perf_counter()
    labels: list[int] = []
    seconds = 0.0
    with _OPEN[name](task, stopped, 1) as epoch:
        for batch in epoch(0):
            seconds = seconds or time.perf_counter() - start
            labels += batch.labels.tolist()
    return {"seconds": seconds or time.perf_counter() - start, "labels": labels}


def obey(name: str, order: dict[str, Any]) -> dict[str, Any]:
    """One order."""
    task = Task(**{**order["task"], "names": tuple(order["task"]["names"])})
    match order["act"]:
        case "epochs":
            return run_epochs(name, task, order["num_epochs"])
        case "stop":
            return run_and_stop(name, task, order["num_batches"])
        case "resume":
            return resume(name, task, Stopped(*order["stopped"]))
    raise AssertionError(order["act"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    name = parser.parse_args().name
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    warm_up(name)
    gc.freeze()  # else a collection after a fork would copy every page that holds an object
    print(json.dumps({"ready": name}), file=answers, flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                print(json.dumps(obey(name, json.loads(line))), file=answers, flush=True)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.wait()
        if status:
            os._exit(1)
    os._exit(0)  # nothing to tidy up, and libraries complain of what they left


def warm_up(name: str) -> None:
    """Import what the contestant needs."""
    match name:
        case "ours":
            import_module("benchmarks.runs")
        case "datasets":
            import accelerate  # noqa: F401
            import datasets  # noqa: F401
        case _:
            import_module("webdataset")


if __name__ == "__main__":
    main()
