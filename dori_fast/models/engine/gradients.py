"""Work with gradients: batches whose graphs fit memory, and steps repeated where they do not.

A loop that owns the graphs of a step (an attack, a mitigation) enters :func:`differentiating` for
its whole run, and makes each step by :func:`fitted`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dori_fast.models.engine.backbone import Program
from dori_fast.models.engine.batch_size import auto_batch_size
from dori_fast.models.engine.engine import Engine
from dori_fast.models.engine.memory import Shrinking, T


@contextmanager
def differentiating(engine: Engine, recompute: bool = False) -> Iterator[None]:
    """A context of work with gradients, whose ``engine.batch_size`` leaves room for graphs.

    Evaluations and backward passes in it have the engine's precision. A batch size that "auto"
    chose is replaced by one that is probed with a backward pass (on a CPU
    the same one). A size of the user's stays. An evaluation that runs out of memory raises; within
    :func:`fitted` the step is repeated with half the size, which stays for the rest of the context.
    Afterwards the batch size is as before. Within another such context the outer one's size stays.

    Args:
        engine: the engine.
        recompute: True to keep, for the backward pass, only the states between the network's
            stages, and to recompute the activations within a stage.

    Raises:
        UsageError: ``recompute`` with a network that runs whole.
    """
    engine.look_again()
    program = engine.program if recompute or engine.not_shared is None else None

    def probe() -> int:
        with engine.evaluating():
            return auto_batch_size(engine.backbone, program, gradients=True)

    with _recomputing(engine, program, recompute), engine.batches.differentiating(recompute, probe):
        yield


def fitted(engine: Engine, step: Callable[[], T], pieces: Shrinking | None = None) -> T:
    """``step()``, repeated with half of ``engine.batch_size`` whenever memory runs out.

    ``engine.evaluations`` counts the repeat alone, ``engine.rows_computed`` the failed try too.

    Args:
        engine: the engine, within :func:`differentiating`.
        step: function that cuts its samples by the batch size and owns their graphs. It starts from
            nothing at each call; its random draws are made before.
        pieces: size of its own by which the step cuts its samples; default: the batch size.
    """
    before = engine.evaluations

    def counted() -> T:
        engine.evaluations = before
        return step()

    return engine.batches.fitted(counted, pieces)


@contextmanager
def _recomputing(engine: Engine, program: Program | None, on: bool) -> Iterator[None]:
    with engine.evaluating():
        if program is None:
            yield
            return
        before, program.recompute = program.recompute, on
        try:
            yield
        finally:
            program.recompute = before
