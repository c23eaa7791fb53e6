"""Hugging Face datasets by name: the only network access of inputs, for ``hf:`` alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dori_fast.errors import UsageError

HUB = "hf:"
_FORM = re.compile(
    r"hf:(?P<name>[^@#]+)(@(?P<revision>[^#]+))?(#((?P<config>[^/]+)/)?(?P<split>\w+))?"
)


def hub_files(source: str) -> list[Path]:
    """The Arrow files of one split of a dataset, downloaded to the library's cache if needed.

    Args:
        source: ``hf:NAME[@REVISION][#[CONFIG/]SPLIT]``; the split is ``train`` by default. A name
            that is a local folder needs no network.

    Raises:
        UsageError: ``source`` has another form, the extra is not installed, or the dataset cannot
            be loaded. Datasets that need a script cannot: no remote code is run.
    """
    parts = _FORM.fullmatch(source)
    if parts is None:
        raise UsageError(f"{source}: not of the form hf:NAME[@REVISION][#[CONFIG/]SPLIT]")
    _refuse_paths(source, parts["name"], parts["revision"])
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{source}: needs datasets; pip install 'dori-fast[data]'") from error
    try:
        found = datasets.load_dataset(
            parts["name"],
            parts["config"],
            split=parts["split"] or "train",
            revision=parts["revision"],
            # overrides HF_DATASETS_IN_MEMORY_MAX_SIZE: the rows are read from the library's files
            keep_in_memory=False,
        )
    # loaders and the network raise anything
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise UsageError(
            f"{source}: cannot be loaded ({reason}); check the name, or give a folder of its files"
        ) from error
    files = [Path(file["filename"]) for file in found.cache_files]
    if not files or getattr(found, "_indices", None) is not None:
        raise UsageError(
            f"{source}: the library keeps these rows in memory or as a selection, not in files;"
            " save them with to_parquet, and give that file"
        )
    return files


def _refuse_paths(source: str, name: str, revision: str | None) -> None:
    """Refuse what is here, or whose first folder is, before anything goes to the network."""
    if os.path.isfile(name):
        raise UsageError(f"{source}: {name!r} is a file; leave out {HUB}")
    if os.path.isfile(os.path.join(name, "dataset_dict.json")):
        # the library would read its caches too
        raise UsageError(f"{source}: {name!r} is a folder of save_to_disk; leave out {HUB}")
    if os.path.exists(name):
        return
    first, *more = name.split("/")
    path = name.startswith((".", "/", "~")) or len(more) > 1
    if path or (more and revision is None and os.path.lexists(first)):
        other = "" if path else f", or write {HUB}{name}@main if it is a dataset of the hub"
        raise UsageError(f"{source}: there is no folder {name!r}; check the path{other}")
