"""Workers: leases go to them, each with a model of its own, and are taken back when they fail."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

from dori_fast.runs.errors import WorkerError
from dori_fast.runs.workers.ledger import Lease, Ledger
from dori_fast.runs.workers.slots import Crew, Place
from dori_fast.runs.workers.worker import Beat, Done, Failed, Ready, known_answer

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

_RESTARTS, _HANGS = 3, 1
_SHORTEST_HANG, _BLOCKS = 300.0, 10
# weights may come over a network, and kernels be compiled for the first time
_LONGEST_START = 1800.0
_TICK = 1.0

_log = logging.getLogger("dori_fast.runs")


class Workers:
    """Workers in the places of a crew, started as there is work, replaced when they die.

    A lease goes to a worker whose answer to a fixed input is the model's. It is given to another
    if its worker dies, loses its device, or is silent for too long (once). What a lease raises
    otherwise would be raised elsewhere too, and is raised here.

    Args:
        model: what each worker has loaded again.
        crew: where workers can be.
        watchdog: seconds of silence; None for ten times the median block, at least 300.
    """

    def __init__(self, model: Denoiser, crew: Crew, watchdog: float | None) -> None:
        self.evaluations, self.batch_size = 0, model.batch_size
        self._model, self._crew, self._watchdog = model, crew, watchdog
        self._in_use: list[Place] = []
        self._answers: dict[str, str] = {}
        self._blocks: deque[float] = deque(maxlen=1000)
        self._losses: Counter[int] = Counter()
        self._hangs: Counter[int] = Counter()

    def finish(self, ledger: Ledger, show: Callable[[int], None]) -> None:
        """See :class:`dori_fast.runs.workers.engine.Engine`.

        Raises:
            WorkerError: a shard's workers, or all workers, died too often.
        """
        try:
            self._in_use = list(self._crew.places)
            while self._hand_out(ledger):
                self._listen(ledger)
                show(sum(place.rows for place in self._in_use))
        finally:
            self._crew.part()
            for place in self._in_use:
                if place.lease is not None:
                    ledger.give_back(place.lease)

    def _hand_out(self, ledger: Ledger) -> bool:
        """Give every idle worker a lease; False if there is none and none is open.

        One that could not be sent, since its worker had just died, is open though nobody has it.
        """
        for place in self._in_use:
            if place.lease is None:
                place.lease = ledger.take() or (self._waiting() if place.ready else None)
                if place.lease is None:
                    continue
                if not place.started:
                    place.start()
                elif place.ready:
                    self._send(place, ledger)
        return ledger.open

    def _waiting(self) -> Lease | None:
        """The lease of a worker that is not ready, taken from it: at the end, nobody waits."""
        for place in self._in_use:
            if place.lease is not None and not place.ready:
                lease, place.lease = place.lease, None
                return lease
        return None

    def _send(self, place: Place, ledger: Ledger) -> None:
        try:
            place.send_lease()
        except OSError:
            self._lose(place, ledger, place.end())

    def _listen(self, ledger: Ledger) -> None:
        heard = self._crew.heard(_TICK)
        for place in heard:
            self._hear(place, ledger)
        # the others after all that was waiting to be read: this process may have been held up
        for place in list(self._in_use):
            if place not in heard and place.lease is not None and place.started:
                self._watch(place, ledger)

    def _hear(self, place: Place, ledger: Ledger) -> None:
        silence = place.silence
        match place.hear():
            case Ready() as ready:
                self._examine(place, ready, ledger)
            case Beat(rows):
                place.rows = rows
                if rows:
                    self._blocks.append(silence)
            case Done(footer, evaluations, batch_size):
                ledger.committed(place.finished(), footer)
                self.evaluations += evaluations
                self.batch_size = min(self.batch_size, batch_size)
            case Failed(error, device_lost):
                if not device_lost:
                    raise error
                place.end()
                self._lose(place, ledger, f"lost its device ({error})")
            case None:
                self._lose(place, ledger, place.end())

    def _examine(self, place: Place, ready: Ready, ledger: Ledger) -> None:
        if not self._answers:
            ours = known_answer(self._model)
            self._answers[ours.device] = ours.answer
        if self._answers.setdefault(ready.device, ready.answer) == ready.answer:
            place.ready = True
            # its lease may have been given to another meanwhile
            if place.lease is not None:
                self._send(place, ledger)
            return
        place.end()
        self._lose(place, ledger, "failed its self-test: a known input has another answer there")

    def _watch(self, place: Place, ledger: Ledger) -> None:
        if not place.ready:
            limit = _LONGEST_START
        elif self._watchdog is not None:
            limit = self._watchdog
        else:
            limit = max(_SHORTEST_HANG, _BLOCKS * median(self._blocks) if self._blocks else 0)
        if place.silence > limit:
            place.end()
            self._lose(place, ledger, f"was silent for {limit:g} s", hung=True)

    def _lose(self, place: Place, ledger: Ledger, why: str, hung: bool = False) -> None:
        """Take the lease of a worker that has ended, and see whether to go on."""
        lease, was_ready = place.lease, place.ready
        place.lost()
        if lease is None:
            return
        ledger.give_back(lease)
        _log.warning("worker %d %s; shard %d is done again", place.number, why, lease.index)
        if was_ready:
            count = self._hangs if hung else self._losses
            count[lease.index] += 1
            if count[lease.index] > (_HANGS if hung else _RESTARTS):
                first, last = lease.rows.first, lease.rows.first + len(lease.rows) - 1
                raise WorkerError(
                    f"shard {lease.index} (rows {first} to {last}): its worker {why},"
                    f" {count[lease.index]} times; other shards are kept"
                    " — look at these rows and the device; the same command tries again"
                )
        if place.failures > _RESTARTS:
            self._in_use.remove(place)
            if not self._in_use:
                raise WorkerError(
                    f"no worker is left: the last one {why}; what is committed is kept"
                    " — see the messages above, and dori-fast doctor"
                )
            _log.warning("worker %d is not started again", place.number)
