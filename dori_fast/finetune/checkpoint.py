"""The state of a fine-tuning run as one safetensors file, with JSON in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.files.tensor_file import read_tensors

_FORMAT = "dori_fast.finetune/1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after ``step`` steps.

    Attributes:
        step: steps done.
        evaluations: UNet samples with a backward pass so far.
        tensors: weights, moments, EMA and triggers. The run's next step writes to them, so copy or
            save them before.
        run: settings, and hashes of the model and of all images and prompts.
    """

    step: int
    evaluations: int
    tensors: Mapping[str, Tensor]
    run: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file in place; a caller that must survive a kill renames it into place."""
        facts = {"step": self.step, "evaluations": self.evaluations, "run": self.run}
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path, {"format": _FORMAT, "facts": json.dumps(facts)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Checkpoint:
        """Read a file of :meth:`save`.

        Raises:
            UsageError: no such file.
            IntegrityError: a damaged file, or one of another kind.
        """
        tensors, metadata = read_tensors(path, _FORMAT, "a checkpoint of fine-tuning")
        facts = json.loads(metadata["facts"])
        return Checkpoint(facts["step"], facts["evaluations"], tensors, facts["run"])

    def require(self, run: Mapping[str, Any]) -> None:
        """Reject a run other than this checkpoint's.

        Raises:
            UsageError: another run; the message names what differs.
        """
        now = json.loads(json.dumps(run))
        names = sorted({*now, *self.run})
        changed = [name for name in names if now.get(name) != self.run.get(name)]
        if changed:
            raise UsageError(
                f"finetune: the checkpoint is of another run; different are {', '.join(changed)}"
            )
