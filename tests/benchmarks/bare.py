"""A Python with nothing but what the head of benchmarks/device.sh names, by links to this one's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "device.sh"
# the baseline of one op, whose absence the rehearsal must survive
LEFT_OUT = {"torchmetrics", "lightning-utilities"}


def named() -> tuple[set[str], set[str]]:
    """Packages that the machine must have, and those that are carried, by the head of the script.

    The first are the indented lines below "imports", the second what pip downloads with a pin.
    """
    comments = [line[1:] for line in SCRIPT.read_text().splitlines() if line.startswith("#")]
    start = next(i for i, line in enumerate(comments) if line.endswith("it imports"))
    stop = next(i for i, line in enumerate(comments) if "nothing else" in line)
    words = " ".join(comments[start + 1 : stop])
    for heading in ("to build:", "to test:"):
        words = words.replace(heading, "")
    carried = {word.split("==")[0] for word in " ".join(comments).split() if "==" in word}
    return set(words.split()), carried


def with_requirements(names: set[str]) -> Iterator[metadata.Distribution]:
    """The installed distributions of these names, and what they require without extras."""
    waiting, known = [*names], set(names)
    while waiting:
        try:
            found = metadata.distribution(waiting.pop())
        except metadata.PackageNotFoundError:
            # of another platform, or an optional part of torch
            continue
        yield found
        for line in found.requires or ():
            wanted = Requirement(line)
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if applies and wanted.name not in known:
                known.add(wanted.name)
                waiting.append(wanted.name)


def bare_python(folder: Path) -> Path:
    """Make the environment in a new folder; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    required, carried = named()
    for package in with_requirements((required | carried) - LEFT_OUT):
        for file in package.files or ():
            top, place = file.parts[0], site / file.parts[0]
            if file.parts[:3] == ("..", "..", "..") and file.parts[3:4] == ("bin",):
                # programs of a package, such as cmake
                place = folder / "bin" / file.parts[4]
            elif top == "..":
                continue
            if not place.exists() and top != "__pycache__":
                source = file if place.parent.name == "bin" else top
                place.symlink_to(Path(str(package.locate_file(source))).resolve())
    return folder / "bin" / "python"
