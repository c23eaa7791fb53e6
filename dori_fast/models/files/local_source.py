"""Local path or hub id: what a source's name stands for, decided by what is on this disk.

A name goes to the hub only if nothing of that name is here, its first folder is not here either,
and it has the form of a hub id.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

from dori_fast.errors import UsageError
from dori_fast.models.files.not_a_model import (
    WEIGHT_SUFFIXES,
    about_file,
    about_folder,
    about_unet_alone,
    is_model,
    listing,
)

_FORMS = "a diffusers directory or a hub id (owner/name)"
_ADDRESS = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[^/?#]+/[^/?#]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+))?"
)
_NO_MODELS = ("datasets/", "spaces/", "docs/", "papers/")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|.*\\")
_PINNED = re.compile(r"(?P<id>[^@/\s]+/[^@/\s]+)@(?P<revision>\S+)")
_OTHER_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "vae")


def local_directory(name: str) -> Path | None:
    """The diffusers directory of this name; None if there is nothing of that name on this disk.

    Raises:
        UsageError: there is something else: a file, another kind of directory, a broken link.
    """
    path = _expanded(name)
    try:
        if path.is_dir():
            if not is_model(path):
                raise UsageError(f"load: {name!r} {about_folder(path)}")
            if not any((path / part).exists() for part in _OTHER_PARTS):
                raise UsageError(f"load: {name!r} {about_unet_alone(path)}")
            return path
        if path.exists():
            raise UsageError(f"load: {name!r} {about_file(path)}")
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"load: {name!r} cannot be opened ({reason}); check the path") from error
    if path.is_symlink():
        raise UsageError(
            f"load: {name!r} is a link to {os.readlink(path)!r}, which is not there; correct the"
            " link"
        )
    return None


def require_local(path: os.PathLike[str]) -> None:
    """Raise UsageError if nothing is at a path, since a path object is never a hub id."""
    name = os.fspath(path)
    if local_directory(name) is None:
        _refuse_path(name)


def require_hub_id(name: str, revision: str | None, embedded: str) -> None:
    """Check a name that is not on this disk, before anything goes to the network.

    Args:
        name: the source.
        revision: branch, tag or commit; with one, the name is a hub id even if a folder of the
            owner's name is here.
        embedded: names of the embedded models, for the message.

    Raises:
        UsageError: not the form of a hub id, or rather a path.
    """
    use = f"use {embedded}, {_FORMS}"
    if not name.strip():
        raise UsageError(f"load: the name of the model is empty; {use}")
    if "://" in name:
        _refuse_address(name)
    if name.startswith("hf:"):
        plain = name.removeprefix("hf:")
        raise UsageError(f"load: {name!r}: hf: is for datasets of prompts; use {plain!r}")
    if _WINDOWS.match(name):
        _refuse_windows(name)
    if pinned := _PINNED.fullmatch(name):
        raise UsageError(
            f"load: no model {name!r}; use {pinned['id']!r} with revision {pinned['revision']!r}"
        )
    if name.startswith((".", "/", "~")) or name.endswith("/"):
        _refuse_path(name)
    if name.count("/") > 1 or name.lower().endswith(WEIGHT_SUFFIXES):
        _refuse_path(name, " (hub ids have the form owner/name)")
    if "/" not in name:
        raise UsageError(f"load: no model {name!r}; {use}")
    if revision is None and os.path.lexists(name.split("/")[0]):
        _refuse_path(name, remedy=", or give its revision, such as main, if it is a hub id")
    _require_form(name, use)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser() if name.startswith("~") else Path(name or "\0")
    except RuntimeError:
        # the home of a user who does not exist
        return Path(name)


def _refuse_path(name: str, note: str = "", remedy: str = "") -> NoReturn:
    """Raise UsageError with the part of a path that is here, and what it holds."""
    path = _expanded(name)
    try:
        there = next(one for one in path.parents if os.path.lexists(one))
        first = there / path.relative_to(there).parts[0]
        if not there.is_dir():
            where = f"{str(there)!r} is not a folder"
        else:
            where = f"no {first.name!r} in {str(there.absolute())!r}, which holds {listing(there)}"
    except (OSError, ValueError) as error:
        where = str(getattr(error, "strerror", None) or error)
    raise UsageError(f"load: no model {name!r}{note}: {where}; check the path{remedy}")


def _refuse_address(name: str) -> NoReturn:
    found = _ADDRESS.match(name)
    if found is None or found["id"].startswith(_NO_MODELS):
        raise UsageError(
            f"load: {name!r} is an address; download the model, and give its diffusers directory"
        )
    pinned = found["revision"]
    extra = f" with revision {pinned!r}" if pinned and pinned != "main" else ""
    raise UsageError(f"load: {name!r} is an address; use the hub id {found['id']!r}{extra}")


def _refuse_windows(name: str) -> NoReturn:
    slashed = name.replace("\\", "/")
    if os.path.exists(slashed):
        raise UsageError(f"load: no model {name!r}; write the path with slashes: {slashed!r}")
    raise UsageError(f"load: no model {name!r}, a path of Windows, on this machine; use {_FORMS}")


def _require_form(name: str, use: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(
            f"load: no model {name!r}, and hub ids have letters, digits, '-', '_' and '.' alone;"
            f" {use}"
        ) from error
