"""A model's files: a local diffusers directory, or a hub snapshot; safetensors and JSON only."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from dori_fast.errors import IntegrityError, UnavailableError, UsageError
from dori_fast.models.files.hashes import first_nonfinite, variant_of
from dori_fast.models.files.tensor_file import refuse_doubled_names
from dori_fast.models.text.encoders import TextSide, TextSideXL

# package data, not an import: the demo room stands above this one
_DEMO = Path(__file__).parents[2] / "demo"
_EMBEDDED = {"demo": _DEMO / "model", "demo-finetuned": _DEMO / "model"}
# of an embedded model that shares everything else with the first
_OWN_UNETS = {"demo-finetuned": _DEMO / "finetuned"}
_PARTS = ("unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "vae")
_TRIES, _PAUSE_SECONDS = 5, 1.0


def resolve_directory(
    name: str, revision: str | None, variant: str | None, local_files_only: bool
) -> tuple[Path, str | None]:
    """The local diffusers directory of a source, and the commit when it came from a hub.

    Raises:
        UsageError: no such source, or one that cannot be fetched.
        UnavailableError: the hub did not answer, asked five times.
    """
    directory = _EMBEDDED.get(name, Path(name))
    if directory.is_dir():
        if revision is not None:
            raise UsageError(
                f"load: revision applies to hub ids, but {name!r} is a local directory"
            )
        if not (directory / "unet" / "config.json").is_file():
            raise UsageError(
                f"load: {name!r} has no unet/config.json; expected a diffusers directory"
            )
        return directory, None
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join(_EMBEDDED)
        raise UsageError(
            f"load: no model {name!r}; use {known}, a diffusers directory or a hub id (owner/name)"
        )
    return _download(name, revision, variant, local_files_only)


def unet_home(name: str, directory: Path) -> Path:
    """The directory with the ``unet`` of a source: its own, but for embedded variants."""
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
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json"]
    weights = [f".{variant}.", f".{variant}-*."] if variant else ["."]
    for part in _PARTS:
        patterns += [f"{part}/*.json", f"{part}/*.txt"]
        patterns += [f"{part}/*{middle}safetensors" for middle in weights]
    try:
        directory = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=None if variant else ["*.fp16.*", "*.non_ema.*"],
                local_files_only=local_files_only,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if local_files_only:
            raise UsageError(
                f"load: {name!r} is not among the downloaded models; load it once without"
                " local_files_only"
            ) from error
        if _may_pass(error):
            raise UnavailableError(
                f"load: the hub does not answer for {name!r} ({type(error).__name__})"
                " — run the same command later, or give a local directory"
            ) from error
        raise UsageError(
            f"load: {name!r} could not be fetched from the hub ({type(error).__name__}); check the"
            " name and the connection, or give a local directory"
        ) from error
    # a snapshot's folder is named after the commit that the revision resolved to
    return directory, directory.name


def _may_pass(error: Exception) -> bool:
    """Whether the hub could not be reached, had no time or was broken; not if it said no."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return False
    # not cached either: why it could not be fetched is the cause
    response = getattr(error.__cause__ or error, "response", None)
    if response is None:
        return isinstance(error, LocalEntryNotFoundError)
    return response.status_code == 429 or response.status_code >= 500


def open_unet(
    directory: Path, dtype: torch.dtype, device: torch.device, variant: str | None
) -> Any:
    """The frozen UNet.

    Raises:
        UsageError: another kind of network, or pickled weights.
        IntegrityError: damaged weights, or weights that are not finite.
    """
    from diffusers import UNet2DConditionModel

    kind = open_json(directory, "unet/config.json").get("_class_name")
    if kind != "UNet2DConditionModel":
        raise UsageError(
            f"load: {kind} is not supported; UNet2DConditionModel (SD 1.x, 2.x, XL) is"
        )
    return _open_frozen(
        UNet2DConditionModel, directory, "unet", device, torch_dtype=dtype, variant=variant
    )


def open_text(
    directory: Path, dtype: torch.dtype, device: torch.device, variant: str | None
) -> TextSide | TextSideXL:
    """Tokenizer and frozen text encoder, or SDXL's two of each; raises as :func:`open_unet`."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    how: dict[str, Any] = {"dtype": dtype, "variant": variant}
    encoder = _open_frozen(CLIPTextModel, directory, "text_encoder", device, **how)
    tokenizer = _open_tokenizer(CLIPTokenizer, directory, "tokenizer")
    if not (directory / "text_encoder_2").is_dir():
        return TextSide(tokenizer, encoder)
    second = _open_frozen(CLIPTextModelWithProjection, directory, "text_encoder_2", device, **how)
    tokenizers = tokenizer, _open_tokenizer(CLIPTokenizer, directory, "tokenizer_2")
    index = open_json(directory, "model_index.json")
    return TextSideXL(
        tokenizers, (encoder, second), bool(index.get("force_zeros_for_empty_prompt", True))
    )


def open_vae(directory: Path, dtype: torch.dtype, variant: str | None) -> Any:
    """The image autoencoder."""
    from diffusers import AutoencoderKL

    return _open(AutoencoderKL, directory, "vae", torch_dtype=dtype, variant=variant)


def open_json(directory: Path, name: str) -> dict[str, Any]:
    """A configuration file.

    Raises:
        UsageError: it is missing or is not JSON.
    """
    try:
        return dict(json.loads((directory / name).read_text()))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"load: {directory / name} is missing or unreadable; is the diffusers directory"
            " complete?"
        ) from error


def _open_frozen(
    kind: Any, directory: Path, part: str, device: torch.device, **options: Any
) -> Any:
    module = _open(kind, directory, part, **options)
    bad = first_nonfinite(module.named_parameters())
    if bad is not None:
        raise IntegrityError(
            f"load: {directory / part} holds NaN or Inf in {bad}; get the weights again"
        )
    return module.to(device).eval().requires_grad_(False)


def _open(kind: Any, directory: Path, part: str, *, variant: str | None, **options: Any) -> Any:
    from safetensors import SafetensorError

    folder = directory / part
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
    options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        module, found = kind.from_pretrained(folder, variant=variant, **options)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IntegrityError(f"load: {folder} cannot be read: {reason}") from error
    if missing := sorted(found["missing_keys"]):
        # the libraries would draw them at random
        raise IntegrityError(
            f"load: {folder} cannot be read: no weights for {missing[0]} and"
            f" {len(missing) - 1} more; get them again"
        )
    return module


def _open_tokenizer(kind: Any, directory: Path, part: str) -> Any:
    folder = directory / part
    if not folder.is_dir():
        raise UsageError(
            f"load: {directory} has no {part}/; expected a complete diffusers directory"
        )
    return kind.from_pretrained(folder, local_files_only=True)
