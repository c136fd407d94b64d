"""Evaluation against counting by hand, one image at a time. tests/distributed has two processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import IMAGE_SIZE, NUM_EVAL, eval_set
from torch import nn

from distill.data.augment import EvalTransform
from distill.data.decode import read_image
from distill.data.loading.loader import EvalBatch, EvalLoader
from distill.data.sources import Source, open_source
from distill.engine import Engine
from distill.engine.agreement import StopRequestedError
from distill.errors import InputError
from distill.evaluation.accuracy import TEACHER, TeacherAnswers, evaluate
from distill.recipe.schema import FashionMnistSpec

TRANSFORM = EvalTransform(image_size=IMAGE_SIZE, crop_fraction=1.0, interpolation="bicubic")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = eval_set(tmp_path_factory.mktemp("data") / "eval")
    return open_source(
        FashionMnistSpec(kind="fashion_mnist", split="test", path=str(folder)), Path()
    )


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(precision="fp32")
    yield engine
    engine.close()


def classifier(seed: int, num_classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE_SIZE**2, num_classes)).eval()


def batches(source: Source, batch_size: int) -> EvalLoader:
    return EvalLoader(
        source, TRANSFORM, batch_size, rank=0, world_size=1, num_workers=0, device="cpu"
    )


def one_by_one(model: nn.Module, source: Source) -> torch.Tensor:
    """Logits [N, K] in float64, each image alone."""
    images = [torch.tensor(TRANSFORM(read_image(source, index))) for index in range(len(source))]
    with torch.no_grad():
        return torch.cat(
            [model((image.permute(2, 0, 1)[None] / 255).float()) for image in images]
        ).double()


@pytest.mark.parametrize("batch_size", [1, 20, NUM_EVAL, 64])
def test_figures_equal_those_counted_by_hand(
    batch_size: int, source: Source, engine: Engine
) -> None:
    """Batches of one, a partial last batch, one batch exactly, and a set smaller than its batch."""
    model, teacher = classifier(0), classifier(1)
    results = evaluate(
        {"student": model}, batches(source, batch_size), engine, TeacherAnswers({TEACHER: teacher})
    )

    logits, answers, labels = (
        one_by_one(model, source),
        one_by_one(teacher, source),
        source.labels.tolist(),
    )
    best_first = [sorted(range(10), key=lambda k, row=row: -row[k]) for row in logits.tolist()]
    correct1 = sum(ranked[0] == label for ranked, label in zip(best_first, labels, strict=True))
    correct5 = sum(label in ranked[:5] for ranked, label in zip(best_first, labels, strict=True))
    agreed = int((logits.argmax(1) == answers.argmax(1)).sum())
    assert 0 < correct1 < correct5 < NUM_EVAL
    assert 0 < agreed < NUM_EVAL

    got = results["student"]
    assert (got.num_samples, got.num_skipped) == (NUM_EVAL, 0)
    # Percentages of whole counts, to the last bit of a float.
    assert got.top1 == 100 * correct1 / NUM_EVAL
    assert got.top5 == 100 * correct5 / NUM_EVAL
    assert got.agreement == 100 * agreed / NUM_EVAL
    log_probs = logits.log_softmax(1)
    loss = -log_probs[range(NUM_EVAL), labels].mean()
    kl = (answers.softmax(1) * (answers.log_softmax(1) - log_probs)).sum(1).mean()
    assert got.loss == pytest.approx(float(loss), rel=1e-6)
    assert got.teacher_kl == pytest.approx(float(kl), rel=1e-5)
    assert (
        results[TEACHER].top1
        == 100 * int((answers.argmax(1) == torch.tensor(labels)).sum()) / NUM_EVAL
    )
    assert results[TEACHER].agreement is None


def test_top_5_of_fewer_than_five_classes_is_all_of_them(source: Source, engine: Engine) -> None:
    class ThreeClasses:
        """The same images under three labels."""

        def __init__(self) -> None:
            self.labels, self.classes = source.labels % 3, ("a", "b", "c")
            self.read, self.describe = source.read, source.describe

        def __len__(self) -> int:
            return len(source)

    results = evaluate({"student": classifier(0, 3)}, batches(ThreeClasses(), 20), engine)
    assert results["student"].top5 == 100
    assert 0 < results["student"].top1 < 100
    assert results["student"].agreement is None


def test_the_teacher_answers_a_set_once(source: Source, engine: Engine) -> None:
    """Later evaluations take its logits from memory and come to the same figures."""
    teacher, calls = classifier(1), 0

    def counted(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return teacher(images)  # type: ignore[no-any-return]

    loader, answers = batches(source, 20), TeacherAnswers({TEACHER: counted})
    first = evaluate({"student": classifier(0)}, loader, engine, answers)
    second = evaluate({"student": classifier(0)}, loader, engine, answers)
    assert calls == len(loader) == 3
    assert first == second


def test_a_set_without_a_readable_image_gives_no_figure(engine: Engine) -> None:
    class NothingReadable:
        def __iter__(self) -> Iterator[EvalBatch]:
            labels = torch.zeros(4, dtype=torch.long)
            yield EvalBatch(
                torch.zeros(4, 3, IMAGE_SIZE, IMAGE_SIZE), labels, labels < 0, labels, num_skipped=4
            )

        def __len__(self) -> int:
            return 1

    with pytest.raises(InputError, match="all 4 images to evaluate on are unreadable"):
        evaluate({"a": classifier(0)}, NothingReadable(), engine)


def test_an_evaluation_can_be_abandoned_and_repeated(source: Source, engine: Engine) -> None:
    """Whether to stop is asked every few batches; what was seen before counts for nothing."""
    asked = 0

    def check_stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise StopRequestedError

    models, loader, answers = (
        {"student": classifier(0)},
        batches(source, 5),
        TeacherAnswers({TEACHER: classifier(1)}),
    )
    with pytest.raises(StopRequestedError):
        evaluate(models, loader, engine, answers, check_stop)
    assert evaluate(models, loader, engine, answers, check_stop) == evaluate(
        models, loader, engine, TeacherAnswers({TEACHER: classifier(1)})
    )
    assert asked == 3 + 3, "at batches 0, 4 and 8 of 11"
