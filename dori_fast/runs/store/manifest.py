"""manifest.json: the sha256 of every result file of a finished run, and one root over them all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dori_fast.errors import IntegrityError
from dori_fast.runs.sources.open import file_sha256
from dori_fast.runs.store.durable import write_durably
from dori_fast.runs.store.merkle import merkle_root

MANIFEST = "manifest.json"
REPORT = "report.html"


class Manifest(BaseModel):
    """The content of manifest.json.

    Attributes:
        merkle_root: hexadecimal; over ``files``.
        files: sha256 by path in the run directory: run.json and every shard, whole files.
        report: sha256 of report.html, if there is one. The page shows the root, so it cannot be
            under it.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    merkle_root: str
    files: dict[str, str]
    report: str | None = None

    @property
    def computed_root(self) -> str:
        """The root that belongs to ``files``.

        A leaf is the file's line in the output of the tool sha256sum, without its newline: the
        digest in hexadecimal, two spaces, the path in UTF-8; leaves are in the order of paths.
        """
        lines = [f"{digest}  {path}".encode() for path, digest in sorted(self.files.items())]
        return merkle_root(lines).hex()

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Raises IntegrityError if the run directory has none that can be read."""
        path = root / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise IntegrityError(f"{path}: missing; the run is not finished") from error
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{path}: damaged, or another version's") from error


def result_files(root: Path) -> list[str]:
    """Paths, in a run directory, of the files under the root."""
    return ["run.json", *sorted(f"shards/{p.name}" for p in (root / "shards").glob("part-*"))]


def seal(root: Path) -> Manifest:
    """Write manifest.json for what a run directory holds now; StorageError if the disk refuses."""
    files = {path: file_sha256(root / path) for path in result_files(root)}
    manifest = Manifest(merkle_root="", files=files)
    manifest.merkle_root = manifest.computed_root
    _write(root, manifest)
    return manifest


def list_report(root: Path) -> None:
    """Add the page report.html to the manifest of a finished run; without one do nothing."""
    if (root / MANIFEST).is_file():
        manifest = Manifest.read(root)
        manifest.report = file_sha256(root / REPORT)
        _write(root, manifest)


def _write(root: Path, manifest: Manifest) -> None:
    text = manifest.model_dump_json(indent=1) + "\n"
    write_durably(root / MANIFEST, lambda path: _write_text(path, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
