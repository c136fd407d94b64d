import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from memory import MemorySource

from distill.data.augment import TrainTransform
from distill.data.loading import prefetch
from distill.data.loading.loader import RankSlice, TrainLoader
from distill.data.mixing import Mixing
from distill.data.order.shuffled import Order
from distill.errors import InputError


class Recorder:
    """A batch and a stream that write down what is done with them."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def tensors(self) -> tuple["Recorder", ...]:
        return (self,)

    def record_stream(self, stream: "Recorder") -> None:
        self.log.append(f"{self.name} used on {stream.name}")

    def wait_stream(self, other: "Recorder") -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []
    fake = SimpleNamespace(
        Stream=lambda device: Recorder("side", log),
        current_stream=lambda device: Recorder("main", log),
        stream=lambda stream: contextlib.nullcontext(),
    )
    monkeypatch.setattr(prefetch.torch, "cuda", fake)
    return log


def issue(name: str, log: list[str]) -> Recorder:
    log.append(f"issue {name}")
    return Recorder(name, log)


def test_the_next_batch_is_under_way_before_one_is_handed_out(log: list[str]) -> None:
    batches = prefetch.on_device(iter("abc"), lambda name: issue(name, log), torch.device("cuda"))
    assert next(batches).name == "a"
    assert log == ["issue a", "main waits for side", "a used on main", "issue b"]
    assert [batch.name for batch in batches] == ["b", "c"]


def test_an_error_in_the_next_batch_does_not_cost_the_good_one(log: list[str]) -> None:
    def host() -> Iterator[str]:
        yield "a"
        raise InputError("bad picture")

    batches = prefetch.on_device(host(), lambda name: issue(name, log), torch.device("cuda"))
    assert next(batches).name == "a"
    with pytest.raises(InputError, match="bad picture"):
        next(batches)


@pytest.mark.gpu
def test_cuda_batches_are_the_cpu_ones(memory_source: type[MemorySource]) -> None:
    source = memory_source(70)
    got = {}
    for device in ("cpu", "cuda"):
        order = Order(70, 16, seed=5, repeats=3)
        transform = TrainTransform(image_size=16, auto_augment="rand-m7-mstd0.5-inc1")
        mixing = Mixing(
            mixup=0.2,
            cutmix=1.0,
            probability=0.9,
            switch_probability=0.5,
            group_size=4,
            num_classes=5,
            image_size=16,
            seed=1,
        )
        loader = TrainLoader(
            source,
            order,
            transform,
            mixing,
            RankSlice(0, 1, 16, 1),
            num_workers=2,
            prefetch_batches=2,
            device=device,
            last_step=20,
        )
        with loader:
            got[device] = [[t.cpu() for t in batch.tensors()] for batch in loader]
    assert len(got["cpu"]) == len(got["cuda"]) == 20
    for host, device in zip(got["cpu"], got["cuda"], strict=True):
        torch.testing.assert_close(
            host[0], device[0], atol=1e-6, rtol=0
        )  # division by 255 rounds differently
        torch.testing.assert_close(host[1], device[1], atol=1e-6, rtol=0)
        assert torch.equal(host[2], device[2])
        assert torch.equal(host[3], device[3])
