"""manifest.json: the sha256 of every result file of a finished run, and one Merkle root."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dori_fast.errors import IntegrityError
from dori_fast.runs.store import shard_names
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.durable import write_text_durably

MANIFEST = "manifest.json"
REPORT = "report.html"


class Manifest(BaseModel):
    """The content of manifest.json.

    Attributes:
        merkle_root: root over ``files``, hexadecimal.
        files: sha256 of run.json and of every shard, by path in the run directory.
        report: sha256 of report.html, if there is one. The page shows the root, so the root
            cannot cover the page.
        decisions: sha256 of every decision's record, by path. The root does not cover them, since
            a finished run may be decided again; they follow from the scores, which it covers.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    merkle_root: str
    files: dict[str, str]
    report: str | None = None
    decisions: Annotated[dict[str, str], Field(exclude_if=operator.not_)] = {}

    @property
    def computed_root(self) -> str:
        """The root that belongs to ``files``.

        A leaf is the file's line in the output of the tool sha256sum, without its newline: the
        digest in hexadecimal, two spaces, the path in UTF-8. Leaves are in the order of paths.
        """
        return _root_of(self.files)

    @property
    def shards_root(self) -> str:
        """The root over the shards alone: equal for two runs with the same rows."""
        return _root_of({p: digest for p, digest in self.files.items() if p != "run.json"})

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Raises IntegrityError if the run directory has no readable manifest."""
        path = root / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise IntegrityError(f"{path}: missing; the run is not finished") from error
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{path}: damaged, or another version's") from error


def _root_of(files: dict[str, str]) -> str:
    lines = [f"{digest}  {path}".encode() for path, digest in sorted(files.items())]
    return merkle_root(lines).hex()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of RFC 6962, section 2.1, with SHA-256 over N >= 0 leaves, 32 bytes.

    A leaf is hashed as ``sha256(0x00 + leaf)``, an inner node as ``sha256(0x01 + left + right)``,
    so that neither can pass for the other. The left subtree has the largest power of two of leaves
    that is smaller than N. The root of no leaves is the hash of nothing.
    """
    if not leaves:
        return hashlib.sha256().digest()
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    # pairing from the left and carrying an odd last node up gives the same tree as the splits
    while len(level) > 1:
        pairs = [
            hashlib.sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        level = pairs + level[len(level) & ~1 :]
    return level[0]


def result_files(root: Path) -> list[str]:
    """Paths, in a run directory, of the files that the root covers."""
    return ["run.json", *(str(p.relative_to(root)) for p in shard_names.lookalikes(root))]


def seal(root: Path) -> Manifest:
    """Write manifest.json for what a run directory holds now; StorageError if the disk refuses."""
    files = {path: file_sha256(root / path) for path in result_files(root)}
    manifest = Manifest(merkle_root="", files=files, decisions=_decisions(root))
    manifest.merkle_root = manifest.computed_root
    _write(root, manifest)
    return manifest


def list_report(root: Path) -> None:
    """Add report.html to the manifest of a finished run; do nothing if there is no manifest."""
    if (root / MANIFEST).is_file():
        manifest = Manifest.read(root)
        manifest.report = file_sha256(root / REPORT)
        _write(root, manifest)


def list_decisions(root: Path) -> None:
    """List the decisions of a finished run in its manifest."""
    manifest = Manifest.read(root)
    manifest.decisions = _decisions(root)
    _write(root, manifest)


def decision_files(root: Path) -> list[str]:
    """Paths, in a run directory, of the records of its decisions, oldest first."""
    return sorted(str(p.relative_to(root)) for p in root.glob("decisions/[0-9]*/decision.json"))


def _decisions(root: Path) -> dict[str, str]:
    return {path: file_sha256(root / path) for path in decision_files(root)}


def _write(root: Path, manifest: Manifest) -> None:
    write_text_durably(root / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
