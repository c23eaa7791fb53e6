"""The directory of a model: local, embedded or downloaded from a hub; safetensors and JSON only."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from dori_fast._text import read_stand_in
from dori_fast.errors import UnavailableError, UsageError
from dori_fast.models.files.hashes import variant_of
from dori_fast.models.files.local_source import local_directory, require_hub_id
from dori_fast.models.files.not_a_model import is_model
from dori_fast.models.files.tensor_file import refuse_doubled_names

# package data, not an import: the demo room stands above this one
_DEMO = Path(__file__).parents[2] / "demo"
_EMBEDDED = {"demo": _DEMO / "model", "demo-finetuned": _DEMO / "model"}
# embedded models that share everything but the UNet with the first
_OWN_UNETS = {"demo-finetuned": _DEMO / "finetuned"}
_PARTS = ("unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "vae")
_OTHER_VARIANTS = ["*.fp16.*", "*.non_ema.*"]
_TRIES, _PAUSE_SECONDS = 5, 1.0


def resolve_directory(
    name: str, revision: str | None, variant: str | None, local_files_only: bool
) -> tuple[Path, str | None]:
    """The local diffusers directory of a source, and the commit if it came from a hub.

    A name never goes to the hub if it, or its first folder, is on this disk; see
    :mod:`dori_fast.models.files.local_source`.

    Raises:
        UsageError: no such source, it is no diffusers directory, or it cannot be fetched.
        UnavailableError: the hub did not respond to five tries.
    """
    directory = _EMBEDDED.get(name) or local_directory(name)
    if directory is not None:
        if revision is not None:
            raise UsageError(
                f"load: revision applies to hub ids, but {name!r} is a local directory; leave it"
                " out"
            )
        return directory, None
    require_hub_id(name, revision, ", ".join(_EMBEDDED))
    directory, commit = _download(name, revision, variant, local_files_only)
    if not is_model(directory):
        raise UsageError(
            f"load: {name!r} on the hub has no unet/config.json; use a Stable Diffusion 1.x, 2.x or"
            " XL in diffusers' layout"
        )
    return directory, commit


def unet_home(name: str, directory: Path) -> Path:
    """The directory with the ``unet`` of a source: its own, except for embedded variants."""
    return _OWN_UNETS.get(name, directory)


def _download(
    name: str, revision: str | None, variant: str | None, local_files_only: bool
) -> tuple[Path, str]:
    for tries in range(1, _TRIES):
        try:
            return _fetch(name, revision, variant, local_files_only)
        except UnavailableError:
            time.sleep(_PAUSE_SECONDS * 2**tries)
    return _fetch(name, revision, variant, local_files_only)


def _fetch(
    name: str, revision: str | None, variant: str | None, local_files_only: bool
) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(patterns: list[str], ignored: list[str] | None) -> Path:
        how: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        found = snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignored, **how)
        return Path(found)

    patterns = ["model_index.json"]
    weights = [f".{variant}.", f".{variant}-*."] if variant else ["."]
    for part in _PARTS:
        patterns += [f"{part}/*.json", f"{part}/*.txt"]
        patterns += [f"{part}/*{middle}safetensors" for middle in weights]
    try:
        directory = snapshot(patterns, None if variant else _OTHER_VARIANTS)
        if variant and (parts := _without_weights(directory)):
            # diffusers reads the plain weights of parts that do not have the variant
            snapshot([f"{part}/*.safetensors" for part in parts], _OTHER_VARIANTS)
    except (_transport_error(), LocalEntryNotFoundError, OSError) as error:
        if local_files_only:
            raise UsageError(
                f"load: {name!r} is not among the downloaded models; load it once without"
                " local_files_only"
            ) from error
        if _may_pass(error):
            raise UnavailableError(
                f"load: the hub does not respond for {name!r} ({type(error).__name__});"
                " run the same command later, or give a local directory"
            ) from error
        raise UsageError(
            f"load: {name!r} could not be fetched from the hub ({_refusal(error)}, or give a local"
            " directory"
        ) from error
    # a snapshot's folder is named after the commit that the revision resolved to
    return directory, directory.name


def _without_weights(directory: Path) -> list[str]:
    """The networks of a model that have no weights while others have some."""
    networks = [part for part in _PARTS if (directory / part / "config.json").is_file()]
    bare = [part for part in networks if not any((directory / part).glob("*.safetensors"))]
    return bare if len(bare) < len(networks) else []


def _transport_error() -> type[Exception]:
    """The base of all errors of the library by which the hub's client speaks HTTP."""
    from huggingface_hub.errors import HfHubHTTPError

    found: type[Exception] = HfHubHTTPError.__bases__[0]
    return found


def _may_pass(error: Exception) -> bool:
    """Whether a later try may succeed: the hub was unreachable, busy or broken."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return False
    status = _status(error)
    if status is None:
        # a wrong proxy stays wrong
        waits = (LocalEntryNotFoundError, _transport_error())
        return isinstance(error, waits) and type(error).__name__ != "ProxyError"
    return status == 429 or status >= 500


def _status(error: Exception) -> int | None:
    """The HTTP status of the hub's response; None without a response."""
    # a LocalEntryNotFoundError has the failed request as its cause
    response = getattr(error.__cause__ or error, "response", None)
    return None if response is None else int(response.status_code)


def _refusal(error: Exception) -> str:
    """Why a hub refused, and what to do: ``reason); remedy``."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    status, kind = _status(error), type(error).__name__
    if isinstance(error, RevisionNotFoundError):
        return "no such revision); check the revision"
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"status {status}, access is restricted); accept the model's conditions on the hub and"
            " set HF_TOKEN to your token"
        )
    # a private model has the same status as none
    if status in (401, 404):
        return (
            f"status {status}: no such model, or it is private or gated); check the name, and set"
            " HF_TOKEN to a token that may read it"
        )
    if status is not None:
        return f"status {status}, {kind}); check the name"
    return f"{kind}); check the name and the connection"


def open_json(directory: Path, name: str) -> dict[str, Any]:
    """The content of a JSON object file.

    Raises:
        UsageError: the file is missing or is not JSON.
    """
    if (reason := read_stand_in(directory / name)) is not None:
        raise UsageError(f"load: {directory / name} {reason}")
    try:
        return dict(json.loads((directory / name).read_text()))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"load: {directory / name} is missing or unreadable; use a complete diffusers directory"
        ) from error


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a text encoder's configuration that transformers reads.

    A folder of the whole CLIP, such as OpenAI's, has it beside that of the image encoder.
    """
    whole, nested = config.get("model_type") == "clip", config.get("text_config")
    return dict(nested) if whole and isinstance(nested, dict) else config


def require_weights(folder: Path, variant: str | None) -> None:
    """Check the weight files of one part of a model before a library opens them.

    Args:
        folder: directory of the part.
        variant: weight variant, such as ``"fp16"``, or None.

    Raises:
        UsageError: pickled weights only, or none of the variant.
        IntegrityError: a damaged header.
    """
    found = {variant_of(path) for path in folder.glob("*.safetensors")}
    if found and variant not in found:
        wanted, *there = (f"variant={name!r}" for name in (variant, *sorted(found, key=str)))
        raise UsageError(f"load: {folder} has no weights of {wanted}; use {' or '.join(there)}")
    if not found:
        raise UsageError(
            f"load: {folder} has no .safetensors weights (pickled weights are not read);"
            " convert them with diffusers' save_pretrained"
        )
    for path in folder.glob("*.safetensors"):
        refuse_doubled_names(path)
