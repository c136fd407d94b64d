"""Predictions of one batch, against sorting by hand: ties, rows that are not finite, a choice among
the logits.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from distill.data.loading.loader import EvalBatch
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.accuracy import TEACHER
from distill.evaluation.predictions import predict

NAN, INF = math.nan, math.inf
LOGITS = torch.tensor(
    [
        [1.0, 3.0, 2.0, 0.0, -1.0, 2.5],
        [2.0, 2.0, 2.0, 2.0, 2.0, 2.0],  # the lower class is first
        [0.0, 1.0, 1.0, 5.0, 1.0, 0.5],
        [NAN, 1.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 9.0],
        [4.0, 0.0, 0.0, 0.0, 0.0, INF],
    ]
)
LABELS = torch.tensor([5, 3, 4, 1, 5, 0])


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(precision="fp32")
    yield engine
    engine.close()


class Batches:
    """Batches of three, in which the images are the numbers of their rows."""

    def __init__(self, valid: tuple[bool, ...] = (True,) * 6, num_skipped: int = 0) -> None:
        self._valid, self._skipped = valid, num_skipped

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[EvalBatch]:
        # The set is read from its end, as ranks read it out of order.
        for rows in ([3, 4, 5], [0, 1, 2]):
            yield EvalBatch(
                images=torch.tensor(rows),
                labels=LABELS[rows],
                valid=torch.tensor([self._valid[row] for row in rows]),
                indices=torch.tensor(rows),
                num_skipped=self._skipped,
            )


def test_rank_first_classes_confidence_and_loss(engine: Engine) -> None:
    found = predict({"net": lambda rows: LOGITS[rows]}, Batches(), engine)["net", ""]
    assert found.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.labels.tolist() == LABELS.tolist()
    assert found.rank.tolist() == [1, 3, 3, 1, 0, 1]
    assert found.top.tolist() == [
        [1, 5, 2, 0, 3],
        [0, 1, 2, 3, 4],
        [3, 1, 2, 4, 5],
        [0, 1, 2, 3, 4],
        [5, 0, 1, 2, 3],
        [5, 0, 1, 2, 3],
    ]
    assert found.finite.tolist() == [True, True, True, False, True, False]
    assert found.right.tolist() == [False, False, False, False, True, False]
    shares = LOGITS.double().softmax(1)
    assert found.confidence[[0, 1, 2, 4]] == pytest.approx(shares.max(1).values[[0, 1, 2, 4]])
    assert found.loss[[0, 1, 2, 4]] == pytest.approx(
        [-math.log(shares[row, LABELS[row]]) for row in (0, 1, 2, 4)], abs=1e-6
    )
    assert np.isnan(found.loss[3])
    assert found.agrees is None


def test_a_choice_of_logits(engine: Engine) -> None:
    choices = {"part": [1, 2, 5], "": None}
    found = predict({"net": lambda rows: LOGITS[rows]}, Batches(), engine, choices=choices)
    part = found["net", "part"]
    # Labels 5, 3, 4, 1, 5, 0: 3, 4 and 0 are none of the choice.
    assert part.rank.tolist() == [1, 3, 3, 0, 0, 3]
    assert part.top[0].tolist() == [1, 5, 2]
    assert part.top[3].tolist() == [1, 2, 5], "the row is finite without its first logit"
    shares = LOGITS[:, [1, 2, 5]].double().softmax(1)
    assert part.loss[0] == pytest.approx(-math.log(shares[0, 2]), abs=1e-6)
    assert np.isnan(part.loss[1])
    assert found["net", ""].rank.tolist() == [1, 3, 3, 1, 0, 1]


def test_a_teacher_is_compared_with_on_the_same_choice(engine: Engine) -> None:
    theirs = LOGITS.roll(1, dims=1)
    found = predict(
        {"net": lambda rows: LOGITS[rows]},
        Batches(valid=(True, True, True, False, True, False)),
        engine,
        teacher=lambda rows: theirs[rows],
        teacher_rows=True,
        choices={"part": [1, 2, 5]},
    )
    part = found["net", "part"]
    assert part.indices.tolist() == [0, 1, 2, 4]
    own, other = (x[[0, 1, 2, 4]][:, [1, 2, 5]].double() for x in (LOGITS, theirs))
    assert part.agrees is not None
    assert part.teacher_kl is not None
    assert part.agrees.tolist() == (own.argmax(1) == other.argmax(1)).tolist()
    kl = (other.softmax(1) * (other.log_softmax(1) - own.log_softmax(1))).sum(1)
    assert part.teacher_kl == pytest.approx(kl.numpy(), abs=1e-6)
    teacher = found[TEACHER, "part"]
    assert teacher.agrees is None
    assert teacher.top[:, 0].tolist() == [[1, 2, 5][i] for i in other.argmax(1).tolist()]


def test_images_that_were_skipped(engine: Engine) -> None:
    some = Batches(valid=(True, False, True, True, True, True), num_skipped=1)
    found = predict({"net": lambda rows: LOGITS[rows]}, some, engine)["net", ""]
    assert (len(found), found.num_skipped) == (5, 2)
    with pytest.raises(InputError, match="all 6 images to evaluate on are unreadable"):
        predict({"net": lambda rows: LOGITS[rows]}, Batches((False,) * 6, num_skipped=3), engine)
