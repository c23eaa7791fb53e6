"""The arguments with which another process can load the same model."""

from __future__ import annotations

from typing import Any

from dori_fast.errors import UsageError
from dori_fast.models.denoiser import Denoiser

_REMEDY = "use one process, or save it with save_pretrained and load the directory"


def recipe_of(model: Denoiser) -> dict[str, Any]:
    """The arguments of :func:`dori_fast.load` that load this model again, all of them picklable.

    The batch size is the current one, since another process might find other memory free and
    choose another. A device without an index stays without one.

    Raises:
        UsageError: a model that no file describes: a masked view, a pipeline in memory, or weights
            that were changed after loading.
    """
    if model.masks is not None:
        raise UsageError(
            "a masked view cannot be loaded again in another process; use one process, or write"
            " the mask into the weights and load those"
        )
    if model.recipe is None:
        origin = model.config()["source"]
        raise UsageError(
            f"the model ({origin}) cannot be loaded again in another process; {_REMEDY}"
        )
    if model.engine.generation:
        raise UsageError(
            "the weights were changed after they were loaded, and another process would load the"
            f" old ones; {_REMEDY}"
        )
    return {**model.recipe, "batch_size": model.batch_size}
