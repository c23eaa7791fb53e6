"""Reading ahead: order, bounded memory, errors in their place, and the thread's end."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from dori_fast.errors import UsageError
from dori_fast.runs.errors import ScanInterrupted
from dori_fast.runs.signals import interruptible
from dori_fast.runs.sources.read_ahead import read_ahead


def threads():
    return [t for t in threading.enumerate() if t.name == "read-ahead"]


@pytest.mark.parametrize("depth", [1, 3])
def test_all_items_come_in_order_and_no_thread_stays(depth):
    with read_ahead(range(1000), depth) as items:
        assert list(items) == list(range(1000))
    with read_ahead([], depth) as items:
        assert list(items) == []
    assert threads() == []


def test_the_source_is_read_while_an_item_is_used():
    read = threading.Event()

    def source():
        yield "first"
        read.set()
        yield "second"

    with read_ahead(source()) as items:
        assert next(items) == "first"
        assert read.wait(10), "the second item was not read while the first was in use"
        assert list(items) == ["second"]


@pytest.mark.parametrize("depth", [1, 3])
def test_it_never_runs_further_ahead_than_its_depth(depth):
    taken = 0

    def source():
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    with read_ahead(source(), depth) as items:
        for number in items:
            time.sleep(0.002)
            # the waiting items and this one
            assert taken <= number + 1 + depth


def test_an_error_of_the_source_comes_in_its_place():
    def source():
        yield from range(3)
        raise UsageError("row 3 is unreadable")

    seen = []
    with pytest.raises(UsageError, match="row 3"), read_ahead(source()) as items:
        for number in items:
            seen.append(number)
    assert seen == [0, 1, 2]
    assert threads() == []


def test_leaving_early_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with pytest.raises(ZeroDivisionError), read_ahead(endless()) as items:
        next(items)
        raise ZeroDivisionError
    assert threads() == []
    assert closed.wait(10)


def test_nobody_waits_for_an_item_that_takes_long():
    asked, release, closed = threading.Event(), threading.Event(), threading.Event()

    def slow():
        try:
            yield 0
            asked.set()
            release.wait(60)
            yield 1
            pytest.fail("asked for after the end")
        finally:
            closed.set()

    with pytest.raises(ZeroDivisionError), read_ahead(slow()) as items:
        next(items)
        assert asked.wait(10)
        began = time.monotonic()
        raise ZeroDivisionError
    assert time.monotonic() - began < 8
    (left,) = threads()
    release.set()
    left.join(10)
    assert threads() == []
    assert closed.wait(10)


def test_ctrl_c_arrives_while_the_main_thread_waits_for_the_source():
    release = threading.Event()

    def stuck():
        # the signal comes when the main thread already waits for the first item
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        threading.Timer(0.5, release.set).start()
        release.wait(10)
        yield 0

    with interruptible(), pytest.raises(ScanInterrupted), read_ahead(stuck()) as items:
        next(items)
        pytest.fail("the signal should have come first")
    assert threads() == []
