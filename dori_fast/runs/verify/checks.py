"""The checks of one run directory: manifest, record, shards, input, weights, scores."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.sources.open import input_sha256
from dori_fast.runs.store import shard_names
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.manifest import (
    MANIFEST,
    REPORT,
    Manifest,
    decision_files,
    result_files,
)
from dori_fast.runs.store.record import RunRecord, hash_identity, model_identity
from dori_fast.runs.store.reopen import open_run
from dori_fast.runs.store.shard import SAME_COMMAND, Footer, check_shard, shard_columns
from dori_fast.runs.verify.decisions import wrong_decisions
from dori_fast.runs.verify.rescore import (
    batches_of,
    differing_rows,
    recorded_detector,
    recorded_model,
    recorded_variant,
    tolerance_of,
    unlike,
)
from dori_fast.runs.verify.result import Finding, Verification

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

RECORD = "run.json"
_LEAST_SAMPLE, _SHOWN = 8, 20
_FINISHED = ("done", "over_budget")


class Checks:
    """The checks, in the order in which to make them; ``result`` collects what they find."""

    def __init__(self, run: Path) -> None:
        self.run, self.result = run, Verification(run)
        self._schema: pa.Schema | None = None
        self._again = f"run the command that made {run} again"

    def manifest(self, noted: str | None) -> None:
        """Compare every result file with manifest.json, and its root with the noted one."""
        try:
            manifest = Manifest.read(self.run)
        except IntegrityError as error:
            what = str(error).removeprefix(f"{self.run / MANIFEST}: ")
            self._found(MANIFEST, what, f"{self._again} to finish and seal the run")
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
                    f"{REPORT} against the noted root, which does not cover it: an edited page"
                    f" can be listed again; run dori-fast report {self.run} to make it anew"
                )
        elif page.is_file():
            self.result.skipped.append(f"{REPORT}: made before the manifest, or not by dori-fast")
        self.result.merkle_root = manifest.computed_root
        against = "" if noted is None else ", the noted one"
        self.result.checked.append(
            f"sha256 of {len(here)} result files and the Merkle root{against}"
        )

    def _listed(self, name: str, digest: str | None, here: bool, remedy: str | None = None) -> None:
        if digest is None:
            self._found(name, f"not listed in {MANIFEST}", "move it away")
        elif not here:
            self._found(name, "missing", self._again)
        elif what := _difference(self.run / name, digest):
            remedy = remedy or f"move it away, then {self._again}"
            if name == RECORD:
                remedy = self._restore
            elif name == REPORT:
                remedy = f"run dori-fast report {self.run}"
            self._found(name, what, remedy)

    def record(self) -> RunRecord | None:
        """Compare run.json with its own hash; None if no further check can rely on it."""
        path = self.run / RECORD
        try:
            record = RunRecord.read(path)
        except IntegrityError as error:
            self._found(RECORD, *str(error).removeprefix(f"{path}: ").split("; ", 1))
            return None
        wrong = ""
        if record.run_hash != hash_identity(record.identity):
            wrong = "run_hash is not the hash of its identity"
        elif model_identity(record.model) != record.identity.get("model"):
            wrong = "model and identity.model differ"
        elif misfit := record.misfit:
            wrong = f"not of a scan, localization or attack ({misfit})"
        if wrong:
            self._found(RECORD, wrong, self._restore)
            self.result.skipped.append("rows, input, weights and scores: run.json was edited")
            return None
        if record.state not in _FINISHED:
            self._found(RECORD, f"the run is not finished ({record.state})", self._again)
        self.result.checked.append("run.json against its own hash")
        return record

    def shards(self, record: RunRecord) -> dict[Path, Footer]:
        """Check every shard by itself, and that those of a finished run hold every row once."""
        size = int(record.identity["shard_size"])
        paths = [self.run / name for name in result_files(self.run) if name != RECORD]
        whole = {path: footer for path in paths if (footer := self._shard(path, record, size))}
        self.result.checked.append(f"{len(paths)} shards: footer, data, run and place")
        # the counts of an unfinished run are not final
        if record.state in _FINISHED:
            self._together(record, size, paths, whole)
        return whole

    def _together(
        self, record: RunRecord, size: int, paths: list[Path], whole: dict[Path, Footer]
    ) -> None:
        counts, present = record.counts, set(paths)
        # an edited count must not make this endless
        for index in range(min(math.ceil(counts.rows / size), len(paths) + _SHOWN)):
            if (path := shard_names.path(self.run, index)) not in present:
                self._found(f"shards/{path.name}", "missing", self._again)
        for path, footer in whole.items():
            expected = min(size, counts.rows - footer.first_row)
            if footer.rows != expected:
                what = f"holds {footer.rows} rows where {expected} belong"
                self._found(f"shards/{path.name}", what, f"move it away, then {self._again}")
        quarantined = sum(footer.quarantined for footer in whole.values())
        if len(whole) == len(paths) and quarantined != counts.quarantined:
            what = f"counts {counts.quarantined} quarantined rows, the shards {quarantined}"
            self._found(RECORD, what, self._restore)
        self.result.checked.append(f"{counts.rows} rows, once each")

    def _shard(self, path: Path, record: RunRecord, size: int) -> Footer | None:
        index = shard_names.number(path)
        try:
            if index is None:
                raise IntegrityError(f"{path}: not the name of a shard")
            self._schema = self._schema or shard_columns(path)
            return check_shard(path, record.run_hash, index * size, self._schema)
        except IntegrityError as error:
            what = str(error).removeprefix(f"{path}: ").removesuffix(SAME_COMMAND)
            self._found(f"shards/{path.name}", what, f"move it away, then {self._again}")
            return None

    def decisions(self) -> None:
        """Make every decision on a run with whole shards again, and compare."""
        paths = decision_files(self.run)
        if not paths and not self.run.joinpath("decisions").exists():
            return
        try:
            listed = Manifest.read(self.run).decisions
        except IntegrityError:
            # found before
            return
        remedy = "move its folder away and run dori-fast flag"
        for path in sorted({*paths, *listed}):
            self._listed(path, listed.get(path), path in paths, remedy)
        for path, what in wrong_decisions(open_run(self.run), paths):
            self._found(path, what, remedy)
        self.result.checked.append(f"{len(paths)} decisions against scores and calibrations")

    def input(self, record: RunRecord) -> None:
        """Compare the input's sha256, if the input still exists."""
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
        """Compare every file of the model with those recorded; whether all are the same."""
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
        """Score a random share of the rows again and compare."""
        if self._schema is None or "score_per_seed" not in self._schema.names:
            self.result.skipped.append("scores: these rows are not a scan's")
            return
        detector = recorded_detector(record.identity["detector"])
        loaded = recorded_model(record, model)
        other = unlike(record, loaded)
        tolerance = loosest = tolerance_of(record, loaded) if other else 0.0
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
            size, allowed = footer.batch_size or record.batch_size, tolerance
            with batches_of(loaded, size):
                different = list(differing_rows(loaded, detector, path, here, allowed))
                if loaded.batch_size != size:
                    # the other shards are compared as strictly as before
                    other.append(f"batch size {size} then, {loaded.batch_size} now")
                    allowed = tolerance_of(record, loaded)
                    different = list(differing_rows(loaded, detector, path, here, allowed))
            loosest = max(loosest, allowed)
            for row, what in different:
                remedy = f"move the shard away, then {self._again}"
                self._found(f"shards/{path.name}", f"row {row}: {what}", remedy)
        self.result.rescored = wanted
        exactly = "to the bit"
        if other:
            exactly = f"within {loosest:g} ({'; '.join(dict.fromkeys(other))})"
        self.result.checked.append(f"{wanted} rows scored again, {exactly}; seed {seed}")

    @property
    def _restore(self) -> str:
        return f"restore it from a copy, or move it away and {self._again}"

    def _found(self, where: str, what: str, remedy: str) -> None:
        finding = Finding(where, what, remedy)
        if finding not in self.result.findings:
            self.result.findings.append(finding)


def _difference(path: Path, digest: str) -> str:
    """The difference between a file and its listed digest; empty if there is none."""
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
            "verify: the run's model had partial weights laid over it;"
            " call df.verify(run, model=df.load(..., unet_weights=...)), or give --files-only"
        )
    source = record.model["source"] if model is None else str(model)
    revision = record.model["revision"] if model is None else None
    parts = {name.split("/")[0] for name in record.model["files"]}
    try:
        return source_hashes(source, revision, parts, variant=recorded_variant(record))
    except UsageError as error:
        raise UsageError(f"verify: {error}; name it with --model, or give --files-only") from error
