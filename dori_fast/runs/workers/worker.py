"""A worker: loads the model, proves that it computes the same, scores one lease at a time."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

import torch

from dori_fast.errors import DoriError, IntegrityError, UsageError
from dori_fast.models import Denoiser, load
from dori_fast.models.engine.memory import out_of_memory
from dori_fast.models.files.hashes import tensors_sha256
from dori_fast.models.reload import recipe_of
from dori_fast.models.schedules.vp import DDIM_STEPS
from dori_fast.ops.self_test import self_test
from dori_fast.runs.store.shard import Footer
from dori_fast.runs.workers.engine import Engine
from dori_fast.runs.workers.ledger import Lease

_PROMPT = "known answer"


@dataclass(frozen=True)
class Ready:
    """The model is loaded; the supervisor compares its known answer.

    ``device`` is the kind of device and the batch size, the same for workers with equal answers.
    """

    device: str
    answer: str


@dataclass(frozen=True)
class Beat:
    """Rows of the lease that are done; 0 when it is begun."""

    rows: int


@dataclass(frozen=True)
class Done:
    """The shard is committed."""

    footer: Footer
    evaluations: int
    rows_computed: int


@dataclass(frozen=True)
class Failed:
    """The last message of a worker, whose process ends: the exception."""

    error: Exception
    device_lost: bool


def known_answer(model: Denoiser) -> Ready:
    """The kind of device, TF32 included, and a digest of the model's prediction for a fixed input.

    CPUs of one kind give equal digests with equal threads and batch sizes. GPUs of one kind must,
    too, or a worker gets no work.
    """
    timestep = model.timesteps(DDIM_STEPS)[0]
    with torch.no_grad():
        output = model.output(model.encode([_PROMPT]), model.noise([0]), timestep)
    kind = f"cpu, {torch.get_num_threads()} threads"
    if model.device.type == "cuda":
        kind = torch.cuda.get_device_name(model.device)
    # halved by the evaluation if memory ran out
    kind += f", batches of {model.batch_size}" + ", TF32" * model.engine.execution.allow_tf32
    return Ready(kind, tensors_sha256({"output": output}))


def packed(
    engine: Engine,
    device: torch.device,
    threads: int,
    dumps: Callable[[object], bytes] = pickle.dumps,
) -> bytes:
    """Pickle an engine for :class:`Worker`, its model as a recipe by which it is loaded again.

    Args:
        engine: engine of this process.
        device: the worker's device.
        threads: the worker's CPU threads.
        dumps: pickler.

    Raises:
        UsageError: the model cannot be loaded again, or the detector cannot be sent.
    """
    recipe = {**recipe_of(engine.model), "device": device}
    rest = (engine.detector, engine.run_hash)
    try:
        return dumps((recipe, engine.model.config(), threads, rest))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(
            f"scan: the detector {engine.detector.name!r} cannot be sent to another process"
            f" ({error}); make it picklable, or use workers=1"
        ) from error


class Worker:
    """An engine in another process.

    Args:
        pickled: bytes from :func:`packed`.

    Raises:
        IntegrityError: another model than the scan's lies there now.
        torch.AcceleratorError: the device computes wrong results.
    """

    def __init__(self, pickled: bytes) -> None:
        recipe, config, threads, rest = pickle.loads(pickled)
        device = recipe["device"]
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.set_num_threads(threads)
        self.model = load(**recipe)
        if self.model.config() != config:
            raise IntegrityError(
                f"{recipe['source']}: another model than the scan began with lies there now;"
                " start again with the model that is there, in another --out"
            )
        fault = self_test("noise_difference", "auto", str(self.model.device))
        if fault is not None:
            raise torch.AcceleratorError(f"noise_difference {fault}")
        self._engine = Engine(self.model, *rest)

    def score(self, lease: Lease, on_block: Callable[[int], None]) -> Done:
        """Score a lease; ``on_block`` as in :meth:`Engine.score`."""
        engine = self._engine
        evaluations, rows = engine.evaluations, engine.rows_computed
        footer = engine.score(lease, on_block)
        return Done(footer, engine.evaluations - evaluations, engine.rows_computed - rows)


def failure(error: Exception) -> Failed:
    """The last message of a worker that raised this."""
    return Failed(_portable(error), _device_lost(error))


def run(connection: Connection, pickled: bytes) -> None:
    """Work in a process of its own until the supervisor closes the connection or is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker = Worker(pickled)
        connection.send(known_answer(worker.model))
        while True:
            lease: Lease = connection.recv()
            connection.send(Beat(0))
            connection.send(worker.score(lease, lambda done: connection.send(Beat(done))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        connection.send(failure(error))
        # a device in an undefined state may hang an orderly exit
        os._exit(1)


def _end_with_parent() -> None:
    """End the process, wherever it is, when its parent ends: nothing would take its results."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """An error that can be pickled, with the original traceback as a note."""
    if isinstance(error, DoriError):
        return error
    found = RuntimeError(f"{type(error).__name__}: {error}")
    found.add_note("".join(traceback.format_exception(error)))
    return found


def _device_lost(error: Exception) -> bool:
    """Whether the device may be in a state in which its results cannot be trusted.

    The remedy is a new process. Running out of memory, even with a batch of one, is no such state.
    """
    if out_of_memory(error):
        return False
    kinds = ("CUDA error", "cuDNN error", "HIP error")
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(kind in str(error) for kind in kinds)
    )
