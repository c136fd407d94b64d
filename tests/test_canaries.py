"""Upstream behaviour that this project is built around. One that fails says that a release changed
under us: read what it names.
"""

import inspect
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace

import accelerate
import accelerate.scheduler
import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from timm.loss import BinaryCrossEntropy
from timm.optim import Lamb
from torch import nn
from torch.nn import functional as F


def test_timm_lamb_clips_the_global_norm_to_one_by_default() -> None:
    """So `distill.student.optimizer` passes max_grad_norm: the recipe decides on clipping, also for
    LAMB.
    """
    assert inspect.signature(Lamb).parameters["max_grad_norm"].default == 1.0

    def after_a_large_and_a_small_gradient(**settings: float | None) -> torch.Tensor:
        weight = nn.Parameter(torch.ones(4))
        optimizer = Lamb([weight], lr=0.1, **settings)
        for gradient in ([100.0, 1.0, 2.0, 3.0], [0.1, 0.3, -0.2, 0.4]):
            weight.grad = torch.tensor(gradient)
            optimizer.step()
        return weight.detach()

    by_default = after_a_large_and_a_small_gradient()
    assert torch.equal(by_default, after_a_large_and_a_small_gradient(max_grad_norm=1.0))
    assert not torch.allclose(
        by_default, after_a_large_and_a_small_gradient(max_grad_norm=None), atol=1e-3
    )


def test_timm_drops_a_pretrained_head_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So a teacher is built with the classes of its weights, and another label space is an
    InputError of ours.
    """
    trained = timm.create_model("test_resnet", num_classes=1000)
    file = tmp_path / "trained.safetensors"
    save_file(trained.state_dict(), file)

    def build(num_classes: int) -> nn.Module:
        overlay = {"file": str(file), "num_classes": 1000}
        return timm.create_model(
            "test_resnet", pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay
        ).eval()

    images = torch.randn(2, 3, 32, 32)
    trained.eval()
    with caplog.at_level(logging.WARNING):
        other = build(num_classes=7)
    assert caplog.records == []
    assert torch.equal(other.forward_features(images), trained.forward_features(images))
    assert not torch.equal(other.get_classifier().weight, trained.get_classifier().weight[:7])
    assert torch.equal(build(num_classes=1000)(images), trained(images))


def test_a_scheduler_prepared_by_accelerate_steps_once_for_each_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So no scheduler is prepared: the learning rate is a function of the step, set by us."""
    monkeypatch.setattr(
        accelerate.scheduler, "AcceleratorState", lambda: SimpleNamespace(num_processes=4)
    )
    inner = SimpleNamespace(steps=0)
    inner.step = lambda: setattr(inner, "steps", inner.steps + 1)
    optimizer = SimpleNamespace(step_was_skipped=False)
    accelerate.scheduler.AcceleratedScheduler(inner, optimizer, split_batches=False).step()
    assert inner.steps == 4


def test_sync_batch_norm_refuses_the_cpu() -> None:
    """So our statistics across processes are our own code, which tests can run on the CPU."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on"):
            nn.SyncBatchNorm(3)(torch.randn(2, 3, 4, 4))
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:reduction")
def test_kl_div_mean_divides_by_the_number_of_classes_too() -> None:
    """So distillation losses sum over classes and average over the batch: "mean" is C times too
    small.
    """
    student, teacher = torch.randn(2, 5, 10).log_softmax(dim=-1)
    per_sample = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    assert torch.allclose(
        F.kl_div(student, teacher, reduction="mean", log_target=True) * 10, per_sample
    )


class _Payload:
    """Anything that is neither a tensor nor a plain container."""


def test_torch_load_refuses_objects_by_default(tmp_path: Path) -> None:
    """So a weights file from elsewhere cannot run code, though we never pass weights_only."""
    file = tmp_path / "payload.pth"
    torch.save({"weight": torch.ones(2), "args": _Payload()}, file)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file)


def test_timm_binary_cross_entropy_averages_over_classes() -> None:
    """So with 1000 classes its gradient is far smaller than one summed over classes:
    `class_reduction` in the recipe names both.
    """
    logits, targets = torch.randn(4, 10), torch.rand(4, 10)
    summed = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / 4
    assert torch.allclose(BinaryCrossEntropy(smoothing=0.0)(logits, targets) * 10, summed)


def test_accelerate_clips_deepspeeds_gradients_at_one_by_default() -> None:
    """So `engine.zero` states gradient_clipping for each student, 0 for none."""
    assert '"gradient_clipping": 1.0' in inspect.getsource(
        accelerate.Accelerator._prepare_deepspeed
    )


def test_accelerates_deepspeed_plugin_asks_for_transformers() -> None:
    """So `engine.zero` takes that call away, which does nothing else; where it is gone, so may ours
    be.
    """
    source = inspect.getsource(accelerate.DeepSpeedPlugin.set_deepspeed_weakref)
    assert 'compare_versions("transformers"' in source
    assert "self.dschf" in source


def test_torch_hands_a_wait_for_workers_back_and_can_be_asked_again() -> None:
    """So `distill.data.loading.workers` polls: by the limit of the iterator, its message, and what
    a second call does; and ends workers by torch's list of them.
    """
    from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

    source = inspect.getsource(_MultiProcessingDataLoaderIter)
    assert 'f"DataLoader timed out after {self._timeout} seconds"' in source
    for name in (
        "self._workers",
        "self._pin_memory_thread_done_event",
        "self._worker_result_queue",
        "def _shutdown_workers",
    ):
        assert name in source, name
    assert "self._timeout = loader.timeout" in inspect.getsource(_BaseDataLoaderIter)
    assert isinstance(torch.UntypedStorage._new_shared(16), torch.UntypedStorage)
