"""The first signal is a request, the second one interrupts, and afterwards everything is as it was."""

from __future__ import annotations

import signal
import threading

import pytest

from draftloop.interrupt import stop_request

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_becomes_a_request(number: signal.Signals) -> None:
    with stop_request() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_interrupts_at_once(second: signal.Signals) -> None:
    with stop_request() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert stop


def test_the_handlers_before_are_put_back_even_after_an_error() -> None:
    before = handlers()
    with stop_request():
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(RuntimeError, match="oh"), stop_request():
        raise RuntimeError("oh")
    assert handlers() == before


def test_outside_the_main_thread_the_handlers_stay_and_nothing_is_requested() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with stop_request() as stop:
            seen.append((bool(stop), handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
