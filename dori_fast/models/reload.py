"""How a model was loaded, so that another process can load the same."""

from __future__ import annotations

from typing import Any

from dori_fast.errors import UsageError
from dori_fast.models.denoiser import Denoiser

_REMEDY = "save it with save_pretrained and load the directory"


def recipe_of(model: Denoiser) -> dict[str, Any]:
    """The arguments of :func:`dori_fast.load` that make this model again, all of them picklable.

    The batch size is what it is now: another process, with other memory free, might choose
    another. A device without an index has none here either.

    Raises:
        UsageError: no file says what this model is: a masked view, a pipeline in memory, or
            weights that were changed after they were loaded.
    """
    if model.masks is not None:
        raise UsageError(
            "a masked view cannot be loaded again in another process"
            " — use one process, or write the mask into the weights and load those"
        )
    if model.recipe is None:
        origin = model.config()["source"]
        raise UsageError(
            f"the model ({origin}) cannot be loaded again in another process"
            f" — use one process, or {_REMEDY}"
        )
    if model.engine.generation:
        raise UsageError(
            "the weights were changed after they were loaded; another process would load the old"
            f" ones — use one process, or {_REMEDY}"
        )
    return {**model.recipe, "batch_size": model.batch_size}
