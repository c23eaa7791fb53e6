"""Reading ahead: a thread reads and checks the next rows while the denoiser works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# together with the workers' grace, well below the ten seconds that schedulers grant
_JOIN_SECONDS = 2.0


@dataclass(frozen=True)
class _End:
    """The source is exhausted, or failed with ``error``."""

    error: BaseException | None


@contextmanager
def read_ahead(source: Iterable[T], depth: int = 1) -> Iterator[Iterator[T]]:
    """The items of ``source`` in order, read by a thread, ``depth`` in advance.

    At most ``depth`` items wait, so memory does not grow with the source. An exception of the
    source is raised here, in the place of the item that failed. On leaving the context the thread
    finishes its current item and reads no other. The context waits two seconds for that; an item
    may take longer, such as the next of millions of rows that a condition keeps.
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

    # a daemon does not hold up a second Ctrl-C
    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        free.release()
        thread.join(_JOIN_SECONDS)
