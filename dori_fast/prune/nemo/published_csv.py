"""The CSV table of NeMo's released code: one row per prompt, neurons as nested lists.

Its columns, separated by semicolons, are ``_COLUMNS``. The released 4_generate_images.py searches
for seven lists in brackets, by a regular expression.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from dori_fast.errors import IntegrityError
from dori_fast.models import NeuronMask

_COLUMNS = (
    "Caption",
    "URL",
    "Initial Neurons",
    "Initial SSIM",
    "Refined Neurons",
    "Refined SSIM",
)
Neurons = Sequence[Sequence[int]]


def write_nemo_csv(
    rows: Iterable[tuple[str, Neurons, float | None, Neurons, float | None]], file: TextIO
) -> None:
    """Write rows of prompt, initial neurons with similarity, refined neurons with similarity.

    A prompt that is not memorized has one empty list per layer and similarities of 0, as in the
    released code.
    """
    table = csv.writer(file, delimiter=";", lineterminator="\n")
    table.writerow(_COLUMNS)
    for prompt, initial, initial_similarity, refined, refined_similarity in rows:
        table.writerow(
            [
                prompt,
                "",
                [list(layer) for layer in initial],
                initial_similarity or 0,
                [list(layer) for layer in refined],
                refined_similarity or 0,
            ]
        )


def read_nemo_csv(
    file: TextIO, layers: Sequence[str], widths: Mapping[str, int]
) -> tuple[list[str], NeuronMask]:
    """Read prompts, and a mask of the refined neurons for each.

    Args:
        file: the table.
        layers: names of the cross-attentions of its lists, in order.
        widths: number of neurons of each layer.

    Raises:
        IntegrityError: a column is missing, a row is cut off, or a cell is not a list of neurons
            for each layer, or of none at all.
    """
    table = csv.DictReader(file, delimiter=";")
    has = table.fieldnames or []
    for name in ("Caption", "Refined Neurons"):
        if name not in has:
            raise IntegrityError(f"NeMo table: no column {name!r}; columns are {', '.join(has)}")
    prompts, neurons = [], []
    try:
        for number, row in enumerate(table, 1):
            found = _lists(row["Refined Neurons"], number)
            if found and len(found) != len(layers):
                counts = f"{len(found)} lists of neurons for {len(layers)} layers"
                raise IntegrityError(f"NeMo table: row {number}: {counts}")
            prompts.append(row["Caption"])
            neurons.append(dict(zip(layers, found, strict=False)))
    except csv.Error as error:
        raise IntegrityError(f"NeMo table: row {len(prompts) + 1}: {error}") from error
    return prompts, NeuronMask.blocking(neurons, widths)


def _lists(cell: str | None, number: int) -> list[list[int]]:
    if cell is None:
        raise IntegrityError(f"NeMo table: row {number}: cut off; remove it and what follows")
    try:
        lists = ast.literal_eval(cell) if cell.strip() else []
        if not all(type(n) is int for layer in lists for n in layer):
            raise TypeError("a neuron is a whole number")
        return [list(layer) for layer in lists]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise IntegrityError(f"NeMo table: row {number}: not lists of neurons ({error})") from error
