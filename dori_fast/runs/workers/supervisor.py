"""The supervisor: gives leases to workers, and takes them back when workers fail."""

from __future__ import annotations

import gc
import logging
from collections import Counter, deque
from collections.abc import Callable
from statistics import median

import torch

from dori_fast.runs.errors import WorkerError
from dori_fast.runs.workers.engine import Engine
from dori_fast.runs.workers.ledger import Lease, Ledger
from dori_fast.runs.workers.slots import Slot, Slots
from dori_fast.runs.workers.worker import Beat, Done, Failed, Ready, known_answer

_RESTARTS, _HANGS = 3, 1
_SHORTEST_HANG, _BLOCKS = 300.0, 10
# weights may come over a network, and kernels may be compiled for the first time
_LONGEST_START = 1800.0
_TICK = 1.0

_log = logging.getLogger("dori_fast.runs")


class Supervisor:
    """Scores leases by workers, which are started as there is work and replaced when they die.

    A worker gets leases once its answer to a fixed input is that of the engine's model. If a worker
    dies, loses its device, or is silent for too long (once), its lease goes to another one. Any
    other exception would be raised by every worker, so it propagates.

    The engine's model is needed until the first worker starts, and not kept: if nobody else has it,
    its memory is free before a worker on the same GPU loads another copy.

    Args:
        engine: engine of this process, of which every worker has a copy.
        slots: slots for the workers.
        watchdog: seconds of silence after which a worker is ended; None for ten times the median
            block, at least 300.
    """

    def __init__(self, engine: Engine, slots: Slots, watchdog: float | None) -> None:
        self.evaluations = self.rows_computed = 0
        self.batch_size = engine.batch_size
        self._engine: Engine | None = engine
        self._slots, self._watchdog = slots, watchdog
        self._in_use: list[Slot] = []
        self._answers: dict[str, str] = {}
        self._blocks: deque[float] = deque(maxlen=1000)
        self._losses: Counter[int] = Counter()
        self._hangs: Counter[int] = Counter()

    def finish(self, ledger: Ledger, show: Callable[[int], None]) -> None:
        """Score leases until none is left; see :meth:`Engine.finish`. No process stays behind.

        Raises:
            WorkerError: the workers of one shard, or all workers, died too often.
        """
        try:
            self._in_use = list(self._slots.all)
            while self._hand_out(ledger):
                self._listen(ledger)
                show(sum(slot.rows for slot in self._in_use))
        finally:
            self._slots.stop()
            for slot in self._in_use:
                if slot.lease is not None:
                    ledger.give_back(slot.lease)

    def _hand_out(self, ledger: Ledger) -> bool:
        """Give every idle worker a lease; False if there is none and none is open.

        A lease whose send failed because the worker just died counts as open.
        """
        for slot in self._in_use:
            if slot.lease is None:
                slot.lease = ledger.take() or (self._unsent() if slot.ready else None)
                if slot.lease is None:
                    continue
                if not slot.started:
                    self._start(slot)
                elif slot.ready:
                    self._send(slot, ledger)
        return ledger.open

    def _start(self, slot: Slot) -> None:
        """Start a worker; before the first one, keep the model's answer and drop the model."""
        if self._engine is not None:
            ours = known_answer(self._engine.model)
            self._answers[ours.device] = ours.answer
            self._engine = None
            _free_unused_memory()
        slot.start()

    def _unsent(self) -> Lease | None:
        """A lease taken from a worker that is not ready, so that at the end none is waited for."""
        for slot in self._in_use:
            if slot.lease is not None and not slot.ready:
                lease, slot.lease = slot.lease, None
                return lease
        return None

    def _send(self, slot: Slot, ledger: Ledger) -> None:
        try:
            slot.send_lease()
        except OSError:
            self._lose(slot, ledger, slot.end())

    def _listen(self, ledger: Ledger) -> None:
        waiting = self._slots.wait(_TICK)
        for slot in waiting:
            self._receive(slot, ledger)
        # after all messages are read, since this process itself may have been held up
        for slot in list(self._in_use):
            if slot not in waiting and slot.lease is not None and slot.started:
                self._watch(slot, ledger)

    def _receive(self, slot: Slot, ledger: Ledger) -> None:
        silence = slot.silence
        match slot.receive():
            case Ready() as ready:
                self._examine(slot, ready, ledger)
            case Beat(rows):
                slot.rows = rows
                if rows:
                    self._blocks.append(silence)
            case Done(footer, evaluations, rows):
                ledger.committed(slot.finished(), footer)
                self.evaluations += evaluations
                self.rows_computed += rows
                self.batch_size = min(self.batch_size, footer.batch_size or self.batch_size)
            case Failed(error, device_lost):
                if not device_lost:
                    raise error
                slot.end()
                self._lose(slot, ledger, f"lost its device ({error})")
            case None:
                self._lose(slot, ledger, slot.end())

    def _examine(self, slot: Slot, ready: Ready, ledger: Ledger) -> None:
        if self._answers.setdefault(ready.device, ready.answer) == ready.answer:
            slot.ready = True
            # another worker may have got its lease meanwhile
            if slot.lease is not None:
                self._send(slot, ledger)
            return
        slot.end()
        self._lose(slot, ledger, "failed its self-test: a known input has another answer there")

    def _watch(self, slot: Slot, ledger: Ledger) -> None:
        if not slot.ready:
            limit = _LONGEST_START
        elif self._watchdog is not None:
            limit = self._watchdog
        else:
            limit = max(_SHORTEST_HANG, _BLOCKS * median(self._blocks) if self._blocks else 0)
        if slot.silence > limit:
            slot.end()
            self._lose(slot, ledger, f"was silent for {limit:g} s", hung=True)

    def _lose(self, slot: Slot, ledger: Ledger, why: str, hung: bool = False) -> None:
        """Take back the lease of a worker that has ended; WorkerError after too many losses."""
        lease, was_ready = slot.lease, slot.ready
        slot.lost()
        if lease is None:
            return
        ledger.give_back(lease)
        _log.warning("worker %d %s; shard %d is done again", slot.number, why, lease.index)
        if was_ready:
            count = self._hangs if hung else self._losses
            count[lease.index] += 1
            if count[lease.index] > (_HANGS if hung else _RESTARTS):
                first, last = lease.rows.first, lease.rows.first + len(lease.rows) - 1
                raise WorkerError(
                    f"shard {lease.index} (rows {first} to {last}): its worker {why},"
                    f" {count[lease.index]} times, other shards are kept;"
                    " look at these rows and the device, then run the same command again"
                )
        if slot.failures > _RESTARTS:
            self._in_use.remove(slot)
            if not self._in_use:
                raise WorkerError(
                    f"no worker is left: the last one {why}, what is committed is kept;"
                    " see the messages above, and dori-fast doctor"
                )
            _log.warning("worker %d is not started again", slot.number)


def _free_unused_memory() -> None:
    """Give the GPU back what nothing uses: objects in cycles, and blocks that torch caches."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
