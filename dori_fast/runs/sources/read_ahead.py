"""Read ahead: the next rows are read and checked while the denoiser works on these."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# with what workers are granted, well below the ten seconds that schedulers grant
_PATIENCE = 2.0


@dataclass(frozen=True)
class _End:
    """The source is used up, or failed."""

    error: BaseException | None


@contextmanager
def read_ahead(source: Iterable[T], depth: int = 1) -> Iterator[Iterator[T]]:
    """The items of ``source`` in its order, taken from it by a thread, ``depth`` in advance.

    At most ``depth`` items wait to be asked for, so memory does not grow with the source. What the
    source raises is raised here, in the place of the item that failed. On leaving the context the
    thread finishes the item that it is at and asks for no other. It has ended then, unless the item
    takes long, such as the next row of millions that a condition keeps: nobody waits for that.
    """
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    free, stopped = threading.Semaphore(depth), threading.Event()

    def read() -> None:
        error: BaseException | None = None
        try:
            iterator = iter(source)
            while free.acquire() and not stopped.is_set():
                items.put(next(iterator))
        except StopIteration:
            pass
        except BaseException as raised:
            error = raised
        items.put(_End(error))

    def taken() -> Iterator[T]:
        while not isinstance(item := items.get(), _End):
            free.release()
            yield item
        if item.error is not None:
            raise item.error

    # a daemon, so that a second Ctrl-C need not wait for it
    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        free.release()
        thread.join(_PATIENCE)
