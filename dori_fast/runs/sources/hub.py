"""Hugging Face datasets by name: only here is the network asked, and only for ``hf:`` inputs."""

from __future__ import annotations

import re
from pathlib import Path

from dori_fast.errors import UsageError

HUB = "hf:"
_FORM = re.compile(
    r"hf:(?P<name>[^@#]+)(@(?P<revision>[^#]+))?(#((?P<config>[^/]+)/)?(?P<split>\w+))?"
)


def hub_files(source: str) -> list[Path]:
    """The Arrow files of one split of a dataset, downloaded to the library's cache if need be.

    Args:
        source: ``hf:NAME[@REVISION][#[CONFIG/]SPLIT]``; the split is ``train`` by default. A name
            that is a local folder is not asked for on the network.

    Raises:
        UsageError: not of this form, the extra is not installed, or the dataset cannot be had.
            Datasets that need a script are among those: no remote code is run.
    """
    parts = _FORM.fullmatch(source)
    if parts is None:
        raise UsageError(f"{source}: not of the form hf:NAME[@REVISION][#[CONFIG/]SPLIT]")
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{source}: needs datasets — pip install 'dori-fast[data]'") from error
    try:
        found = datasets.load_dataset(
            parts["name"],
            parts["config"],
            split=parts["split"] or "train",
            revision=parts["revision"],
        )
    # what a loader or the network raises is anything
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise UsageError(
            f"{source}: cannot be had ({reason}) — check the name, or give a folder of its files"
        ) from error
    return [Path(file["filename"]) for file in found.cache_files]
