"""SSCD, the copy descriptor that the field reports (Pizzi et al., CVPR 2022, arXiv 2202.10261).

The similarity of two images is the cosine of their descriptors. The published models are
TorchScript files, which are programs: a file is loaded only if you allow its code to run and name
its sha256. The literature has two preprocessings, each with its own model, and their similarities
are not interchangeable:

* ``"skew_320"``: stretched to 320 x 320, ImageNet's mean and deviation; with sscd_disc_mixup in
  NeMo (Hintersdorf et al., NeurIPS 2024).
* ``"crop_224"``: shorter side to 256, middle 224 x 224, mean and deviation 0.5; with
  sscd_disc_large in Wen et al. (ICLR 2024) and Chavhan et al.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast._checks import threshold_number
from dori_fast.errors import IntegrityError, NonFiniteError, UsageError
from dori_fast.models.precision import fixed_precision

THRESHOLD = 0.7  # the papers' threshold of a replication
_BATCH = 32


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an image.

    Attributes:
        mean: mean of each channel, subtracted.
        deviation: standard deviation of each channel, divided by.
        stretch: length that both sides are stretched to; 0 uses the next two instead.
        shorter: length that the shorter side is resized to.
        crop: side of the square that is then cropped from the middle.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    stretch: int = 0
    shorter: int = 0
    crop: int = 0

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """float32 [3, h, w] from uint8 [H, W, 3], resized by PIL's antialiased bilinear filter."""
        from PIL import Image

        image = Image.fromarray(pixels)
        if self.stretch:
            image = image.resize((self.stretch, self.stretch), Image.Resampling.BILINEAR)
        else:
            image = _middle(_shorter_side(image, self.shorter), self.crop)
        unit = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (self.mean, self.deviation))
        return (unit - mean) / deviation


def _shorter_side(image: Any, length: int) -> Any:
    """torchvision's Resize(length): the longer side is rounded down to a whole number."""
    from PIL import Image

    width, height = image.size
    if width <= height:
        size = (length, int(length * height / width))
    else:
        size = (int(length * width / height), length)
    return image.resize(size, Image.Resampling.BILINEAR)


def _middle(image: Any, side: int) -> Any:
    width, height = image.size
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


PREPROCESSINGS = {
    "skew_320": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), stretch=320),
    "crop_224": Preprocessing((0.5,) * 3, (0.5,) * 3, shorter=256, crop=224),
}


class SSCD:
    """A measure of copying: see :class:`dori_fast.evaluate.copies.CopySimilarity`.

    Args:
        file: your TorchScript file of SSCD; nothing is downloaded.
        preprocessing: ``"skew_320"`` or ``"crop_224"``.
        sha256: hash of the file, in hexadecimal.
        run_its_code: must be True, since a TorchScript file is a program that will be run.
        threshold: similarity above which an image counts as a copy; it depends on the model and
            the preprocessing.
        device: device of the descriptor network.

    Raises:
        UsageError: no such file or preprocessing, or ``run_its_code`` is not set.
        IntegrityError: a different sha256, or not a TorchScript file.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        preprocessing: str,
        sha256: str,
        run_its_code: bool = False,
        threshold: float = THRESHOLD,
        device: str | torch.device = "cpu",
    ) -> None:
        if preprocessing not in PREPROCESSINGS:
            known = ", ".join(PREPROCESSINGS)
            raise UsageError(f"SSCD: preprocessing must be one of {known}, got {preprocessing!r}")
        if not run_its_code:
            raise UsageError(
                f"SSCD: {os.fspath(file)} is TorchScript, a program; pass run_its_code=True if you"
                " trust where it comes from"
            )
        self.name = f"SSCD {preprocessing}"
        self.threshold = threshold_number("SSCD", threshold)
        self._device = torch.device(device)
        self._sha256 = _checked_sha256(file, sha256)
        self._preprocess = PREPROCESSINGS[preprocessing]
        try:
            self._network = torch.jit.load(os.fspath(file), map_location=self._device).eval()
        except RuntimeError as error:
            raise IntegrityError(f"SSCD: {os.fspath(file)} is not a TorchScript file") from error

    def config(self) -> dict[str, Any]:
        """Everything that the similarities depend on besides the images, as plain JSON."""
        return {"name": self.name, "threshold": self.threshold, "sha256": self._sha256}

    @torch.no_grad()
    def descriptors(self, images: NDArray[np.uint8]) -> Tensor:
        """Descriptors of length 1, float32 [N, D] on the CPU, of uint8 [N, H, W, 3].

        Raises:
            NonFiniteError: a descriptor is NaN, infinite or zero, so that it has no direction.
        """
        parts = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
        with fixed_precision():
            found = [
                self._network(torch.stack([self._preprocess(x) for x in part]).to(self._device))
                for part in parts
            ]
        descriptors = torch.cat(found).float().cpu()
        lengths = descriptors.norm(dim=-1)
        bad = int((~(lengths.isfinite() & (lengths > 0))).sum())
        if bad:
            raise NonFiniteError(
                f"SSCD: {bad} of {len(lengths)} descriptors are NaN, Inf or zero; check the"
                " network's file"
            )
        return torch.nn.functional.normalize(descriptors, dim=-1)

    def __call__(
        self, drawn: NDArray[np.uint8], original: NDArray[np.uint8]
    ) -> NDArray[np.float64]:
        """Similarities [P, S] of uint8 [P, S, H, W, 3] to uint8 [P, H', W', 3]."""
        prompts, seeds = drawn.shape[:2]
        found = self.descriptors(drawn.reshape(-1, *drawn.shape[2:])).view(prompts, seeds, -1)
        wanted = self.descriptors(original)
        return np.asarray((found * wanted[:, None]).sum(-1).double())


def _checked_sha256(file: str | os.PathLike[str], wanted: str) -> str:
    try:
        with open(file, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"SSCD: {os.fspath(file)} cannot be read: {error.strerror}") from error
    if found != wanted.lower():
        raise IntegrityError(f"SSCD: {os.fspath(file)} has sha256 {found}, not {wanted}")
    return found
