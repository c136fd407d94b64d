"""Signals that stop a run, in the main process and in forked workers."""

import os
import signal
import time

import pytest
from forks import Say, fork

from distill.engine.signals import Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_return(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == number.name
    assert before == {n: signal.getsignal(n) for n in before}


def test_the_second_interrupt_is_not_waited_for() -> None:
    def impatient() -> None:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received == "SIGINT"
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert signal.getsignal(signal.SIGINT) is before is not signal.SIG_IGN


def test_an_interrupt_that_was_ignored_stays_ignored() -> None:
    """As a shell starts what runs in the background; SIGTERM stops it."""

    def background(say: Say) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            say(str(signals.received))
            os.kill(os.getpid(), signal.SIGTERM)
            say(str(signals.received))
        say(str(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))

    assert fork(background) == (0, ["None", "SIGTERM", "True"])


def test_forked_workers_die_of_sigterm_and_leave_the_rest_to_their_parent() -> None:
    with Signals() as signals:

        def worker(say: Say) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGUSR1)
            say("alive")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

        assert fork(worker) == (signal.SIGTERM, ["alive"])
        assert signals.received is None
