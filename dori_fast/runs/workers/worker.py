"""A worker: loads the model, proves that it is the right one, does one lease at a time."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from dori_fast.errors import DoriError, IntegrityError, UsageError
from dori_fast.models import Denoiser, load
from dori_fast.models.files.hashes import tensors_sha256
from dori_fast.models.reload import recipe_of
from dori_fast.ops.self_test import self_test
from dori_fast.runs.store.shard import Footer
from dori_fast.runs.workers.engine import Work, do_lease
from dori_fast.runs.workers.ledger import Lease

_PROMPT = "known answer"


@dataclass(frozen=True)
class Order:
    """What a worker is to be."""

    recipe: dict[str, Any]
    described: dict[str, Any]
    threads: int
    work: Work


@dataclass(frozen=True)
class Ready:
    """The model is loaded; whether it is the right one is for the other side to say."""

    device: str
    answer: str


@dataclass(frozen=True)
class Beat:
    """So many rows of the lease are done; 0 when it is begun."""

    rows: int


@dataclass(frozen=True)
class Done:
    """The shard is committed."""

    footer: Footer
    evaluations: int
    batch_size: int


@dataclass(frozen=True)
class Failed:
    """The last word of a worker, whose process ends: what was raised."""

    error: Exception
    device_lost: bool


def known_answer(model: Denoiser) -> Ready:
    """The kind of device, and a digest of what the model predicts there for a fixed input.

    Equal devices with equal threads give equal digests, to the bit.
    """
    timestep = model.timesteps(50)[0]
    with torch.no_grad():
        epsilon = model.epsilon(model.encode([_PROMPT]), model.noise([0]), timestep)
    kind = f"cpu, {torch.get_num_threads()} threads"
    if model.device.type == "cuda":
        kind = torch.cuda.get_device_name(model.device)
    return Ready(kind, tensors_sha256({"epsilon": epsilon}))


def order(
    model: Denoiser,
    work: Work,
    device: torch.device,
    threads: int,
    dumps: Callable[[object], bytes] = pickle.dumps,
) -> bytes:
    """What a worker is to be, pickled, since only it need be able to unpickle it.

    Args:
        model: what it is to load again.
        work: what it is to do.
        device: where.
        threads: on a CPU.
        dumps: another pickler than Python's.

    Raises:
        UsageError: the model cannot be loaded again, or the detector not be sent.
    """
    recipe = {**recipe_of(model), "device": device}
    try:
        return dumps(Order(recipe, model.config(), threads, work))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(
            f"scan: the detector {work.detector.name!r} cannot be sent to another process"
            f" ({error}) — make it picklable, or use workers=1"
        ) from error


class Worker:
    """A model and what is done with it.

    Args:
        pickled: an :class:`Order`.

    Raises:
        IntegrityError: another model lies where the order's was.
        torch.AcceleratorError: the device does not compute what it should.
    """

    def __init__(self, pickled: bytes) -> None:
        order: Order = pickle.loads(pickled)
        device = order.recipe["device"]
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.set_num_threads(order.threads)
        self.model, self._work = load(**order.recipe), order.work
        if self.model.config() != order.described:
            raise IntegrityError(
                f"{order.recipe['source']}: another model than the scan began with lies there now"
                " — start again with the model that is there, in another --out"
            )
        fault = self_test("noise_difference", "auto", str(self.model.device))
        if fault is not None:
            raise torch.AcceleratorError(f"noise_difference {fault}")

    def do(self, lease: Lease, on_block: Callable[[int], None]) -> Done:
        """Do a lease; ``on_block`` as for :func:`dori_fast.runs.workers.engine.do_lease`."""
        before = self.model.engine.evaluations
        footer = do_lease(self.model, self._work, lease, on_block)
        return Done(footer, self.model.engine.evaluations - before, self.model.batch_size)


def failure(error: Exception) -> Failed:
    """The last word of a worker to which this happened."""
    return Failed(_portable(error), _device_lost(error))


def run(connection: Connection, pickled: bytes) -> None:
    """The whole life of a worker in a process of its own.

    It ends when the other side closes the connection, or is gone.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker = Worker(pickled)
        connection.send(known_answer(worker.model))
        while True:
            lease: Lease = connection.recv()
            connection.send(Beat(0))
            connection.send(worker.do(lease, lambda done: connection.send(Beat(done))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        connection.send(failure(error))
        # a device in an undefined state may hang an orderly exit
        os._exit(1)


def _end_with_parent() -> None:
    """End, wherever this process is, when the parent has: nobody would take what it makes."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """An error that can be pickled and raised elsewhere, with where it was raised as a note."""
    if isinstance(error, DoriError):
        return error
    found = RuntimeError(f"{type(error).__name__}: {error}")
    found.add_note("".join(traceback.format_exception(error)))
    return found


def _device_lost(error: Exception) -> bool:
    """Whether a device may be in a state in which nothing that it says can be trusted.

    The cure is a new process. Memory that ran out, even for a batch of one, is no such state.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    kinds = ("CUDA error", "cuDNN error", "HIP error")
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(kind in str(error) for kind in kinds)
    )
