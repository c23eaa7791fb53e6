"""Check a finished run: every byte, every row's place, the weights, and a sample scored again."""

from __future__ import annotations

import math
import random
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.sources.open import input_sha256
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.manifest import MANIFEST, REPORT, Manifest, result_files
from dori_fast.runs.store.record import RunRecord, hash_identity, model_identity
from dori_fast.runs.store.shard import Footer, check_shard, shard_columns
from dori_fast.runs.verify.rescore import (
    TOLERANCE,
    differing_rows,
    recorded_detector,
    recorded_model,
    recorded_variant,
    unlike,
)

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

_LEAST_SAMPLE, _SHOWN = 8, 20
_RECORD = "run.json"
_FINISHED = ("done", "over_budget")


class Finding(NamedTuple):
    """Something that is not as it should be: where, what, and the next step."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} — {self.remedy}"


@dataclass
class Verification:
    """What was checked, and what was found.

    Attributes:
        run: the run directory.
        checked: one line for each kind of check that was made.
        skipped: one line for each that could not be made, or was not asked for.
        findings: empty if all is well.
        merkle_root: of the manifest, hexadecimal; None without one.
        rescored: rows scored again.
    """

    run: Path
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    merkle_root: str | None = None
    rescored: int = 0


def verify(
    run: str | Path,
    *,
    model: Denoiser | str | Path | None = None,
    sample: float = 0.01,
    seed: int | None = None,
    root: str | None = None,
    files_only: bool = False,
) -> Verification:
    """Check a run directory of a scan, localization or attack; nothing is written.

    Args:
        run: the run directory.
        model: the model now, or where it lies; by default where the run had it from.
        sample: share of the rows of a scan to score again, 0..1; at least 8 rows unless 0.
        seed: of the choice of rows; fresh by default, and told in ``checked``.
        root: a Merkle root that was noted when the run finished, in hexadecimal.
        files_only: leave out the model: neither its files nor scores are checked.

    Scores must be equal to the bit on the same device, threads, libraries and batch size, else
    within :data:`dori_fast.runs.verify.rescore.TOLERANCE`, relative.

    Raises:
        UsageError: no run directory, a wrong argument, or the model is not at hand.
    """
    if not 0 <= sample <= 1:
        raise UsageError(f"verify: sample={sample}: a share of the rows, between 0 and 1")
    path = Path(run)
    if not (path / _RECORD).exists():
        raise UsageError(f"{path}: no run directory (it has no run.json) — check the path")
    _refuse_fine_tuning(path)
    check = _Check(path)
    check.manifest(root)
    record = check.record()
    if record is None:
        return check.result
    shards = check.shards(record)
    check.input(record)
    if files_only:
        check.result.skipped.append("weights and scores: only files were asked for")
    elif check.weights(record, model) and sample and shards:
        seed = secrets.randbits(32) if seed is None else seed
        check.scores(record, shards, model, sample, seed)
    return check.result


class _Check:
    """The checks, in order, on one run directory."""

    def __init__(self, run: Path) -> None:
        self.run, self.result = run, Verification(run)
        self._schema: pa.Schema | None = None
        self._again = f"run the command that made {run} again"

    def manifest(self, noted: str | None) -> None:
        """Every result file against manifest.json, and that against the root noted elsewhere."""
        try:
            manifest = Manifest.read(self.run)
        except IntegrityError as error:
            what = str(error).removeprefix(f"{self.run / MANIFEST}: ")
            self._found(MANIFEST, what, f"{self._again}; it finishes and seals the run")
            return
        if manifest.computed_root != manifest.merkle_root:
            self._found(MANIFEST, "its Merkle root is not that of its list", self._again)
        if noted is not None and manifest.computed_root != noted.strip().lower():
            what = f"the Merkle root is {manifest.computed_root}, not the one that was noted"
            self._found(MANIFEST, what, "the run was edited, or the root is another run's")
        here = set(result_files(self.run))
        for name in sorted(here | set(manifest.files)):
            self._listed(name, manifest.files.get(name), name in here)
        page = self.run / REPORT
        if manifest.report is not None:
            self._listed(REPORT, manifest.report, page.is_file())
            if noted is not None:
                self.result.skipped.append(
                    f"{REPORT} against the noted root, which does not cover it: who edits the page"
                    f" can list it again — dori-fast report {self.run} makes it anew"
                )
        elif page.is_file():
            self.result.skipped.append(f"{REPORT}: made before the manifest, or not by dori-fast")
        self.result.merkle_root = manifest.computed_root
        against = "" if noted is None else ", the noted one"
        self.result.checked.append(
            f"sha256 of {len(here)} result files and the Merkle root{against}"
        )

    def _listed(self, name: str, digest: str | None, here: bool) -> None:
        if digest is None:
            self._found(name, f"not listed in {MANIFEST}", "move it away")
        elif not here:
            self._found(name, "missing", self._again)
        elif what := _differs(self.run / name, digest):
            remedy = f"move it away, then {self._again}"
            if name == _RECORD:
                remedy = self._restore
            elif name == REPORT:
                remedy = f"dori-fast report {self.run}"
            self._found(name, what, remedy)

    def record(self) -> RunRecord | None:
        """run.json against its own hash; None if nothing more can be said."""
        path = self.run / _RECORD
        try:
            record = RunRecord.read(path)
        except IntegrityError as error:
            self._found(_RECORD, *str(error).removeprefix(f"{path}: ").split(" — ", 1))
            return None
        wrong = ""
        if record.run_hash != hash_identity(record.identity):
            wrong = "run_hash is not the hash of its identity"
        elif model_identity(record.model) != record.identity.get("model"):
            wrong = "model and identity.model differ"
        elif misfit := record.misfit:
            wrong = f"not of a scan, localization or attack ({misfit})"
        if wrong:
            self._found(_RECORD, wrong, self._restore)
            self.result.skipped.append("rows, input, weights and scores: run.json was edited")
            return None
        if record.state not in _FINISHED:
            self._found(_RECORD, f"the run is not finished ({record.state})", self._again)
        self.result.checked.append("run.json against its own hash")
        return record

    def shards(self, record: RunRecord) -> dict[Path, Footer]:
        """Every shard by itself; of a finished run, that together they hold every row once."""
        size = int(record.identity["shard_size"])
        paths = [self.run / name for name in result_files(self.run) if name != _RECORD]
        whole = {path: footer for path in paths if (footer := self._shard(path, record, size))}
        self.result.checked.append(f"{len(paths)} shards: footer, data, run and place")
        # only the end of a run counts
        if record.state in _FINISHED:
            self._together(record, size, paths, whole)
        return whole

    def _together(
        self, record: RunRecord, size: int, paths: list[Path], whole: dict[Path, Footer]
    ) -> None:
        counts, named = record.counts, {path.name for path in paths}
        # an edited count must not make this endless
        for index in range(min(math.ceil(counts.rows / size), len(paths) + _SHOWN)):
            if (name := f"part-{index:05d}.parquet") not in named:
                self._found(f"shards/{name}", "missing", self._again)
        for path, footer in whole.items():
            expected = min(size, counts.rows - footer.first_row)
            if footer.rows != expected:
                what = f"holds {footer.rows} rows where {expected} belong"
                self._found(f"shards/{path.name}", what, f"move it away, then {self._again}")
        quarantined = sum(footer.quarantined for footer in whole.values())
        if len(whole) == len(paths) and quarantined != counts.quarantined:
            what = f"counts {counts.quarantined} quarantined rows, the shards {quarantined}"
            self._found(_RECORD, what, self._restore)
        self.result.checked.append(f"{counts.rows} rows, once each")

    def _shard(self, path: Path, record: RunRecord, size: int) -> Footer | None:
        number = path.stem.removeprefix("part-")
        try:
            if not number.isdecimal():
                raise IntegrityError(f"{path}: not the name of a shard")
            self._schema = self._schema or shard_columns(path)
            return check_shard(path, record.run_hash, int(number) * size, self._schema)
        except IntegrityError as error:
            what = str(error).removeprefix(f"{path}: ")
            self._found(f"shards/{path.name}", what, f"move it away, then {self._again}")
            return None

    def input(self, record: RunRecord) -> None:
        """The input's sha256, where the input is still at hand."""
        path = record.input_path
        try:
            now = path and input_sha256(path)
        except (UsageError, OSError, ValueError):
            now = None
        if not now:
            self.result.skipped.append("input: not at hand")
        elif now != record.identity["input_sha256"]:
            remedy = "find the input of the run, or scan the new one into another --out"
            self._found(str(path), "its sha256 is not the one in run.json", remedy)
        else:
            self.result.checked.append(f"sha256 of the input, {path}")

    def weights(self, record: RunRecord, model: Denoiser | str | Path | None) -> bool:
        """Every file of the model now against those recorded; whether they are the same."""
        then: dict[str, str] = record.model["files"]
        now = _files_now(record, model)
        remedy = "get the model's files again, or scan with this model into another --out"
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                what = (
                    f"sha256 {now.get(name, 'missing')} now, {then.get(name, 'none')} in run.json"
                )
                self._found(f"model file {name}", what, remedy)
        self.result.checked.append(f"sha256 of {len(then)} model files")
        return then == now

    def scores(
        self,
        record: RunRecord,
        shards: dict[Path, Footer],
        model: Denoiser | str | Path | None,
        sample: float,
        seed: int,
    ) -> None:
        """Some rows scored again."""
        if self._schema is None or "score_per_seed" not in self._schema.names:
            self.result.skipped.append("scores: these rows are not a scan's")
            return
        detector = recorded_detector(record.identity["detector"])
        loaded = recorded_model(record, model)
        other = unlike(record, loaded)
        tolerance = TOLERANCE[record.model["dtype"]] if other else 0.0
        rows = sum(footer.rows for footer in shards.values())
        wanted = min(rows, max(_LEAST_SAMPLE, math.ceil(sample * rows)))
        chosen = iter(sorted(random.Random(seed).sample(range(rows), wanted)))
        place, first = next(chosen, None), 0
        for path, footer in shards.items():
            here = set()
            while place is not None and place < first + footer.rows:
                here.add(footer.first_row + place - first)
                place = next(chosen, None)
            first += footer.rows
            for row, what in differing_rows(loaded, detector, path, here, tolerance):
                remedy = f"move the shard away, then {self._again}"
                self._found(f"shards/{path.name}", f"row {row}: {what}", remedy)
        self.result.rescored = wanted
        exactly = f"within {tolerance:g} ({'; '.join(other)})" if other else "to the bit"
        self.result.checked.append(f"{wanted} rows scored again, {exactly}; seed {seed}")

    @property
    def _restore(self) -> str:
        return f"restore it from a copy, or move it away and {self._again}"

    def _found(self, where: str, what: str, remedy: str) -> None:
        finding = Finding(where, what, remedy)
        if finding not in self.result.findings:
            self.result.findings.append(finding)


def _refuse_fine_tuning(run: Path) -> None:
    """Fine-tuning leaves neither rows nor a manifest; what a run's run.json was edited to, does."""
    if (run / MANIFEST).exists() or (run / "shards").exists():
        return
    try:
        record = RunRecord.read(run / _RECORD)
    except IntegrityError:
        return
    if "fine_tuning" in record.identity:
        raise UsageError(
            f"{run}: fine-tuning has no rows to check — give the --out of dori-fast scan, prune or"
            " attack"
        )


def _differs(path: Path, digest: str) -> str:
    """How a file is not the listed one; empty if it is."""
    try:
        same = file_sha256(path) == digest
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if same else f"its sha256 is not the one in {MANIFEST}"


def _files_now(record: RunRecord, model: Denoiser | str | Path | None) -> dict[str, str]:
    from dori_fast.models import Denoiser, source_hashes

    if isinstance(model, Denoiser):
        return dict(model.config()["files"])
    if "unet_weights" in record.model["files"]:
        raise UsageError(
            "verify: the run's model had partial weights laid over it"
            " — call scan.verify(run, model=df.load(..., unet_weights=...)), or give --files-only"
        )
    source = record.model["source"] if model is None else str(model)
    revision = record.model["revision"] if model is None else None
    parts = {name.split("/")[0] for name in record.model["files"]}
    try:
        return source_hashes(source, revision, parts, variant=recorded_variant(record))
    except UsageError as error:
        raise UsageError(f"verify: {error}; name it with --model, or give --files-only") from error
