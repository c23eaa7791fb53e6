"""Parts that several pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from dori_fast.errors import IntegrityError
from dori_fast.report.load import Run
from dori_fast.report.names import settings
from dori_fast.report.pages.page import Html, facts, figure, note, section, table

# a page is for reading: longer lists are cut, with a note
SHOWN = 100


def file_name(run: Run) -> str:
    """Name of a run in the title of its page."""
    return run.root.resolve().name


def unfinished(run: Run) -> list[Html]:
    """A note if the run has more rows to come, or too many in quarantine."""
    state, counts = run.summary()["state"], run.summary()["counts"]
    if state == "done":
        return []
    if state == "over_budget":
        return [
            note(
                f"{counts['quarantined']:,} of {counts['rows']:,} rows were quarantined, more than"
                " the run allows: it does not count as done."
            )
        ]
    return [note("This run is not finished; the page shows the rows committed so far.")]


def run_facts(run: Run) -> Html:
    """Model, input, method and environment of a run."""
    record = run.summary()
    identity, model, counts = record["identity"], record["model"], record["counts"]
    hashes = model.get("files") or {}
    unet = [hashes[name] for name in hashes if _is_unet_weights(name)]
    return facts(
        [
            ("model", model.get("source")),
            ("revision", model.get("revision")),
            ("UNet sha256", ", ".join(unet) or None),
            ("UNet weights laid over, sha256", hashes.get("unet_weights")),
            ("masks sha256", model.get("masks")),
            ("read otherwise than by its pipeline", "; ".join(record.get("reading", [])) or None),
            ("dtype, device", f"{model.get('dtype')}, {model.get('device')}"),
            ("method", settings(identity["detector"])),
            ("input", record["input_path"]),
            ("input sha256", identity["input_sha256"]),
            ("column", identity["column"]),
            ("limit", identity["limit"]),
            ("rows", f"{counts['rows']:,}, {counts['quarantined']:,} of them quarantined"),
            ("batch size", record["batch_size"]),
            ("UNet evaluations, without padding", _count(record.get("evaluations"))),
            ("UNet rows computed, with padding", _count(record.get("rows_computed"))),
            ("started", record["started"]),
            ("time", str(timedelta(seconds=round(record["seconds"])))),
            ("versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
            ("run", record["run_hash"]),
            ("Merkle root of run.json and shards", run.merkle_root),
        ]
    )


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _is_unet_weights(name: str) -> bool:
    # a file of a directory, or the UNet of a pipeline in memory
    return name == "unet" or (name.startswith("unet/") and name.endswith(".safetensors"))


def more(shown: Sequence[object], total: int) -> list[Html]:
    """A note if a list shows fewer rows than there are."""
    rest = total - len(shown)
    return [note(f"{rest:,} more are in the run directory.")] if rest > 0 else []


def quarantine(rows: Sequence[tuple[int, str]], total: int) -> list[Html]:
    """The first of ``total`` quarantined rows, (row, ``"code: message"``)."""
    shown = rows[:SHOWN]
    return [table(("row", "reason"), shown, right=("row",)), *more(shown, total)]


def written(root: Path, names: Mapping[str, str]) -> list[Html]:
    """A section for each of these PNG files that exists.

    Args:
        root: Folder of the files.
        names: Titles by file name.

    Raises:
        IntegrityError: a file is no PNG.
    """
    parts = []
    for name, title in names.items():
        path = root / name
        if path.is_file():
            try:
                parts.append(section(title, figure(path.read_bytes(), title)))
            except ValueError as error:
                raise IntegrityError(
                    f"{path}: {error}; run the command that wrote it again"
                ) from error
    return parts
