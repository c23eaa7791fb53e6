"""Localization over a file of prompts: a row per prompt, then masks and tables of all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dori_fast._text import read_stand_in
from dori_fast.errors import IntegrityError, NonFiniteError, UsageError
from dori_fast.ops import pack_mask, unpack_mask
from dori_fast.prune import NeMo, NeuronMask, NeuronStatistics, Wanda, WeightMask
from dori_fast.prune.nemo.published_csv import write_nemo_csv
from dori_fast.runs.budget import MAX_ERRORS, require_readable, require_rows
from dori_fast.runs.methods.row_runs import Found, RowRunResult, run_rows
from dori_fast.runs.progress import Progress
from dori_fast.runs.sources.columnar import first_line
from dori_fast.runs.sources.memory.values import described
from dori_fast.runs.sources.open import open_prompts, prompts_on_disk
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.directory import Resume
from dori_fast.runs.store.durable import write_durably

if TYPE_CHECKING:
    from dori_fast.models import Denoiser, TextCondition
    from dori_fast.runs.sources.rows import Rows

MASKS, TABLE, IMAGES = "masks.safetensors", "nemo.csv", "pictures.safetensors"
EMBEDDINGS = "embeddings.safetensors"

_LISTS = pa.list_(pa.list_(pa.int32()))
_NEMO = pa.schema(
    {
        "memorized": pa.bool_(),
        "alike": pa.float32(),
        "seeds": pa.list_(pa.int32()),
        "theta": pa.float32(),
        "k": pa.int32(),
        "threshold": pa.float32(),
        "initial": _LISTS,
        "initial_similarity": pa.float32(),
        "refined": _LISTS,
        "refined_similarity": pa.float32(),
        "tests": pa.int32(),
        "evaluations": pa.int64(),
    }
)
_WANDA = pa.schema({"pruned": pa.list_(pa.binary()), "evaluations": pa.int64()})


@dataclass(frozen=True)
class PruneResult:
    """A finished localization.

    Attributes:
        run: the run, its rows, and its ``state``.
        masks: one mask per row, ``missing`` for quarantined rows; as saved in
            ``masks.safetensors``.
        layers: layers of the masks, in order.
    """

    run: RowRunResult
    masks: NeuronMask | WeightMask
    layers: tuple[str, ...]


def read_statistics(path: str | Path) -> NeuronStatistics:
    """Statistics from a file of this package (.safetensors) or of NeMo's released code (.pt)."""
    if reason := read_stand_in(path):
        raise IntegrityError(f"{path}: {reason}")
    if Path(path).suffix == ".safetensors":
        return NeuronStatistics.load(path)
    return NeuronStatistics.load_nemo(path)


def statistics_of(
    model: Denoiser,
    prompts: str | Path | Iterable[object],
    header: bool | None = None,
    max_errors: float = MAX_ERRORS,
) -> NeuronStatistics:
    """Statistics over clean prompts, as in a scan; skips rows without a usable prompt.

    Raises:
        UsageError: fewer than two usable prompts.
        OverBudgetError: more rows without a usable prompt than ``max_errors`` allows.
    """
    with prompts_on_disk(prompts) as path:
        reader = open_prompts(path, selection=Selection.of(header=header))
        require_rows(reader, described(prompts))
        require_readable(reader, described(prompts), max_errors)
        usable = (
            prompt for rows in reader.chunks(1024) for prompt in rows.prompts if prompt is not None
        )
        return NeuronStatistics.collect(model, usable)


def prune(
    model: Denoiser,
    prompts: str | Path | Iterable[object],
    *,
    out: str | Path,
    method: NeMo | Wanda,
    embeddings: str | Path | None = None,
    column: str | None = None,
    header: bool | None = None,
    limit: int | None = None,
    resume: Resume = "auto",
    max_errors: float = MAX_ERRORS,
    on_progress: Callable[[Progress], None] | None = None,
) -> PruneResult:
    """Localize every prompt of an input into a run directory, resumable prompt by prompt.

    Args:
        model: the denoiser.
        prompts: as in a scan. Rows without a prompt, or with predictions that are NaN or infinite,
            are quarantined, and their mask is missing.
        out: the run directory: a row per prompt in ``shards/``, all masks in
            ``masks.safetensors``, and NeMo's neurons in the released code's format in ``nemo.csv``.
            The last two are left out if no row could be localized.
        method: NeMo, or Wanda with ``joint=False`` (for a joint mask, which is one computation
            over all prompts, call its ``localize``).
        embeddings: run directory of an attack on the same prompts. Each row's adversarial
            embedding is localized instead of its prompt; rows without one are quarantined.
        column: the prompt column; default: the first usual name.
        header: True if .csv and .tsv files begin with column names, False if not; as in a scan.
        limit: number of rows to read; default: all.
        resume: as in a scan.
        max_errors: as in a scan; ``run.state`` is then ``"over_budget"``.
        on_progress: called after each shard.

    Raises:
        UsageError: wrong arguments, no rows, or a model that the method does not support.
        IntegrityError, StorageError, ScanInterrupted: as in a scan.
    """
    if not isinstance(method, NeMo | Wanda):
        raise UsageError(f"prune: method must be a df.prune.NeMo or Wanda, got {method!r}")
    nemo = isinstance(method, NeMo)
    if isinstance(method, Wanda) and method.joint:
        raise UsageError("prune: a joint mask has no rows of its own; use Wanda(joint=False)")
    layers = tuple(method.layers(model))
    found = None if embeddings is None else read_embeddings(embeddings)
    config = method.config()
    if found is not None:
        config["embeddings"] = file_sha256(embeddings_file(embeddings or ""))
    selection = Selection.of(header=header)
    with prompts_on_disk(prompts) as path:
        reader = open_prompts(path, column, selection)
        require_rows(reader, described(prompts))
        run = run_rows(
            model,
            reader,
            path,
            out=Path(out),
            method=config,
            columns=_NEMO if nemo else _WANDA,
            compute=lambda shards: _compute(model, method, shards, found),
            together=method.at_once(model) if isinstance(method, NeMo) else 1,
            selection=selection,
            limit=limit,
            resume=resume,
            max_errors=max_errors,
            on_progress=on_progress,
        )
    masks = _masks(model, run, layers, nemo)
    provenance = {"method": method.name, "run": str(Path(out).name)}
    if not run.counts.ok:
        for name in (MASKS, TABLE):
            (run.out / name).unlink(missing_ok=True)
        return PruneResult(run, masks, layers)
    write_durably(run.out / MASKS, lambda file: masks.save(file, **provenance))
    if nemo:
        write_durably(run.out / TABLE, lambda file: _write_table(run, len(layers), file))
    return PruneResult(run, masks, layers)


def save_images(
    result: PruneResult, model: Denoiser, rows: int, seeds: Sequence[int], **how: Any
) -> None:
    """Draw the first rows' prompts with and without their masks, from the same seeds.

    The report shows these images, which lie in ``pictures.safetensors``.

    Args:
        result: result of :func:`prune`.
        model: the same model.
        rows: number of prompts.
        seeds: seeds of the initial noises.
        how: ``steps`` and ``guidance`` of :meth:`Denoiser.generate`.
    """
    usable = [row for row in result.run.rows() if row["status"] == "ok"][:rows]
    if not usable:
        return
    prompts = [row["prompt"] for row in usable]
    images = {"before": model.generate(model.encode(prompts), seeds, **how).numpy()}
    view = model.masked(result.masks.take([row["row_id"] for row in usable]))
    images["after"] = view.generate(view.encode(prompts), seeds, **how).numpy()
    images["row_id"] = np.array([row["row_id"] for row in usable])
    write_durably(result.run.out / IMAGES, lambda file: save_file(images, file))


def embeddings_file(run: str | Path) -> Path:
    """The file of embeddings in an attack's run directory, or that file itself."""
    return Path(run) if Path(run).is_file() else Path(run) / EMBEDDINGS


def read_embeddings(run: str | Path) -> dict[int, torch.Tensor]:
    """The embeddings [T, D] in an attack's run directory, by row.

    Raises:
        UsageError: the directory holds no finished attack, or one without a result.
        IntegrityError: the file holds something else.
    """
    path = embeddings_file(run)
    if not path.exists():
        raise UsageError(
            f"{path}: no such file; give the run directory of a finished attack that attacked a row"
        )
    if reason := read_stand_in(path):
        raise IntegrityError(f"{path}: {reason}")
    try:
        saved = load_file(path)
        rows, embeddings = saved["row_id"].tolist(), torch.from_numpy(saved["embeddings"])
        return dict(zip(rows, embeddings, strict=True))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{path}: holds no embeddings of an attack ({first_line(error)}); give the run"
            " directory of dori-fast attack"
        ) from error


def _compute(
    model: Denoiser,
    method: NeMo | Wanda,
    shards: Sequence[tuple[Rows, Sequence[int]]],
    embeddings: dict[int, torch.Tensor] | None,
) -> list[Found]:
    """Results of several shards, whose rows NeMo searches together."""
    wanted = [(rows.first + i, rows.prompts[i] or "") for rows, places in shards for i in places]
    missing = {row for row, _ in wanted if embeddings is not None and row not in embeddings}
    there = [(row, prompt) for row, prompt in wanted if row not in missing]
    given: list[str] | TextCondition = [prompt for _, prompt in there]
    if embeddings is not None and there:
        given = model.condition(torch.stack([embeddings[row] for row, _ in there]))
    localized = iter(_localized(model, method, given))
    results = iter(
        "embedding: the attack has none for this row" if row in missing else next(localized)
        for row, _ in wanted
    )
    return [[next(results) for _ in places] for _, places in shards]


def _localized(
    model: Denoiser, method: NeMo | Wanda, wanted: list[str] | TextCondition
) -> Iterator[dict[str, Any] | str]:
    if isinstance(method, NeMo):
        for found in method.searches(model, wanted):
            if isinstance(found, NonFiniteError):
                yield f"nonfinite: {found}"
            else:
                yield {**asdict(found), "memorized": found.memorized}
        return
    for i in range(len(wanted)):
        try:
            result = method.run(model, wanted[i : i + 1])
        except NonFiniteError as error:
            yield f"nonfinite: {error}"
            continue
        packed = [pack_mask(mask[0]).numpy().tobytes() for mask in result.mask.pruned.values()]
        yield {"pruned": packed, "evaluations": result.evaluations}


def _masks(
    model: Denoiser, run: RowRunResult, layers: Sequence[str], nemo: bool
) -> NeuronMask | WeightMask:
    rows = list(run.rows())
    missing = frozenset(i for i, row in enumerate(rows) if row["status"] != "ok")
    if nemo:
        widths = {name: model.engine.value_widths[name] for name in layers}
        lists = [dict(zip(layers, row["refined"] or [], strict=False)) for row in rows]
        return NeuronMask.blocking(lists, widths, missing=missing)
    shapes = {name: tuple(model.unet.get_submodule(name).weight.shape) for name in layers}
    return WeightMask(
        {
            name: torch.stack([_unpacked(row["pruned"], i, shape) for row in rows])
            if rows
            else torch.zeros((0, *shape), dtype=torch.bool)
            for i, (name, shape) in enumerate(shapes.items())
        },
        missing,
    )


def _unpacked(pruned: list[bytes] | None, layer: int, shape: tuple[int, int]) -> torch.Tensor:
    if pruned is None:
        return torch.zeros(shape, dtype=torch.bool)
    packed = torch.frombuffer(bytearray(pruned[layer]), dtype=torch.uint8)
    return unpack_mask(packed.reshape(shape[0], -1), shape[1])


def _write_table(run: RowRunResult, layers: int, path: Path) -> None:
    nothing: list[list[int]] = [[]] * layers
    rows = (
        (
            row["prompt"] or "",
            row["initial"] or nothing,
            row["initial_similarity"],
            row["refined"] or nothing,
            row["refined_similarity"],
        )
        for row in run.rows()
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        write_nemo_csv(rows, file)
