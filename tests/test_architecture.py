"""The house rules that a machine can check: who imports whom, and how large things may grow.

Every rule is a function from the sources to its offenders. One test asks that there are none, and
names all of them at once; another plants an offense of every kind and asks that the rule sees it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import pytest

from docs.floors import FLOORS, pictures
from docs.imports import ROOT, circles, graph, parsed, sources

Texts = Mapping[str, str]
Rule = Callable[[Texts], list[str]]

FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# finetune's inner loop is the attack
SIDEWAYS = {("finetune", "attack")}
# torch at most; every room may use these, and they import no room
PLUMBING = {
    "errors",
    "testing",
    "_backend",
    "_checks",
    "_extension",
    "_info",
    "_library",
    "_text",
    "_version",
}
# the test helpers compare kernels with their references
PLUMBING_MAY = {("testing", "ops"), ("testing", "reference")}
# third-party libraries that a room must not know
FOREIGN = {
    "ops": {"diffusers", "transformers"},
    "reference": {"diffusers", "transformers", "triton"},
    "triton_kernels": {"diffusers", "transformers"},
    "models": {"typer", "rich", "pyarrow"},
    "detect": {"typer", "rich", "pyarrow", "pathlib"},
    "prune": {"typer", "rich", "pyarrow", "pathlib"},
}

# inside models: what a place may import of the room's other places
MODELS = {
    "files": set(),
    "schedules": set(),
    "text": {"files", "frozen", "precision"},
    "images": {"schedules", "frozen", "precision"},
    "masks": {"files"},
    "engine": {"masks", "text", "files", "frozen", "precision"},  # knows no architecture
    # they know no files, no methods and no batches
    "backbones": {"engine", "masks", "text"},
    "components": {"files"},
    "gate": {"components", "backbones", "schedules", "text", "images"},
    "modules": {"files", "text", "gate"},
    "denoiser": {"engine", "backbones", "masks", "text", "schedules", "images", "files"},
}
ABOVE_THE_DENOISER = {"load", "save", "reload", "overlay", "probes", "in_place", "prefixed"}
BATCHES = {"engine", "batch", "batch_size"}

# inside runs: what a room may import of the other rooms
RUNS = {
    "store": {"errors"},
    "sources": {"errors", "store.durable", "store.digest"},
    "scoring": {"errors", "sources.rows"},
    "workers": {"errors", "scoring", "store", "sources.rows", "progress"},
}
# renames a folder of intermediate tables, which end with the call
SCRATCH = {"dori_fast.runs.dedup.token_table"}
APART = ("verify", "dedup", "methods")

BENCHMARKS = {
    "harness": set(),
    "peak": set(),
    "device": set(),
    "ceilings": {"harness"},
    "ops": {"harness", "peak", "ceilings"},
    "pages": {"harness"},
    "peers": {"harness", "peak"},
    "speed": {"harness", "peak", "ceilings", "peers"},
    "quality": {"harness", "peak", "peers", "pages"},
}

FILES_IN_A_FOLDER = 16
LINES = {".py": 350, ".cpp": 400, ".h": 400, ".cu": 400, ".cuh": 400}


def arrows(texts: Texts, tree: str) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Imports within a tree: the names of both files, and their parts below the tree."""
    for name, targets in graph(texts).items():
        for target in sorted(targets):
            if name.startswith(f"{tree}.") and target.startswith(f"{tree}."):
                yield name, target, name.split(".")[1:], target.split(".")[1:]


def under(place: str, allowed: set[str]) -> bool:
    """Whether a dotted place is one of those allowed, or lies below one."""
    return any(place == one or place.startswith(f"{one}.") for one in allowed)


def upward_imports(texts: Texts) -> list[str]:
    found = []
    for name, target, here, there in arrows(texts, "dori_fast"):
        room, other = here[0], there[0]
        if room == other or other in PLUMBING or room == "__main__":
            continue
        if room in PLUMBING:
            right = (room, other) in PLUMBING_MAY
        else:
            right = FLOOR.get(other, -1) > FLOOR.get(room, 99) or (room, other) in SIDEWAYS
        if not right:
            found.append(f"{name} imports {target}, sideways or upwards")
    return found


def rooms_without_a_floor(texts: Texts) -> list[str]:
    rooms = {name.split(".")[1] for name in texts if name.startswith("dori_fast.")}
    return sorted(rooms - FLOOR.keys() - PLUMBING - {"__main__"})


def foreign_libraries(texts: Texts) -> list[str]:
    return [
        f"{name} imports {target}"
        for name, targets in graph(texts).items()
        for target in sorted(targets)
        if name.startswith("dori_fast.")
        and target.split(".")[0] in FOREIGN.get(name.split(".")[1], ())
    ]


def imports_from_outside_the_wheel(texts: Texts) -> list[str]:
    return [
        f"{name} imports {target}"
        for name, targets in graph(texts).items()
        for target in sorted(targets)
        if name.split(".")[0] == "dori_fast"
        and target.split(".")[0] in ("benchmarks", "recipes", "tests", "docs")
    ]


def import_circles(texts: Texts) -> list[str]:
    found = graph(texts)
    return [
        f"{tree}: {' <-> '.join(circle)}"
        for tree in ("dori_fast", "benchmarks", "recipes")
        for circle in circles({n: t for n, t in found.items() if n.split(".")[0] == tree})
    ]


def walls_in_models(texts: Texts) -> list[str]:
    found = []
    for name, target, here, there in arrows(texts, "dori_fast"):
        if here[0] != "models" or there[0] != "models" or len(here) < 2 or len(there) < 2:
            continue
        place, other = here[1], there[1]
        right = place == other or place in ABOVE_THE_DENOISER or other in MODELS.get(place, ())
        if place == "backbones" and other == "engine" and there[2:3] and there[2] in BATCHES:
            right = False
        if not right:
            found.append(f"{name} imports {target}")
    return found


def walls_in_runs(texts: Texts) -> list[str]:
    found = []
    for name, target, here, there in arrows(texts, "dori_fast"):
        if here[0] != "runs" or there[0] != "runs" or len(here) < 2 or len(there) < 2:
            continue
        room, other = here[1], there[1]
        right = room == other or room not in RUNS or under(".".join(there[1:]), RUNS[room])
        if room in APART and other in APART and room != other:
            right = False
        if not right:
            found.append(f"{name} imports {target}")
    return found


def moves_a_file(node: ast.Call) -> bool:
    match node.func:
        case ast.Attribute(ast.Name("os" | "shutil"), "replace" | "rename" | "move"):
            return True
        case ast.Attribute(_, "replace" | "rename"):
            # of a path, since that of a text takes two arguments
            return len(node.args) == 1 and not node.keywords
    return False


def writers_outside_the_store(texts: Texts) -> list[str]:
    """Places in runs that move a file to its final name, not through store.durable."""
    return [
        f"{name}, line {node.lineno}: {ast.unparse(node)}"
        for name, text in texts.items()
        if name.startswith("dori_fast.runs.") and name not in SCRATCH
        if not name.startswith("dori_fast.runs.store.")
        for node in ast.walk(parsed(text))
        if isinstance(node, ast.Call) and moves_a_file(node)
    ]


def walls_in_benchmarks(texts: Texts) -> list[str]:
    found = [
        f"{name} imports {target}"
        for name, target, here, there in arrows(texts, "benchmarks")
        if here[0] != there[0] and there[0] not in BENCHMARKS.get(here[0], ())
    ]
    return found + [
        f"{name} imports {target}"
        for name, targets in graph(texts).items()
        for target in sorted(targets)
        if name.split(".")[0] in ("benchmarks", "recipes") and target.split(".")[0] == "tests"
    ]


def crowded_folders(texts: Texts) -> list[str]:
    count = Counter(
        name.rpartition(".")[0]
        for name in texts
        if not any(other.startswith(f"{name}.") for other in texts)
    )
    return [
        f"{folder} has {files} files, over {FILES_IN_A_FOLDER}"
        for folder, files in sorted(count.items())
        if files > FILES_IN_A_FOLDER
    ]


def long_files(texts: Texts) -> list[str]:
    sizes = {name: (len(text.splitlines()), LINES[".py"]) for name, text in texts.items()}
    for path in (ROOT / "csrc").rglob("*.*"):
        lines = len(path.read_text().splitlines())
        sizes[str(path.relative_to(ROOT))] = (lines, LINES[path.suffix])
    return [
        f"{name} has {lines} lines, over {limit}: split it by purpose"
        for name, (lines, limit) in sizes.items()
        if lines > limit
    ]


RULES: list[Rule] = [
    upward_imports,
    rooms_without_a_floor,
    foreign_libraries,
    imports_from_outside_the_wheel,
    import_circles,
    walls_in_models,
    walls_in_runs,
    writers_outside_the_store,
    walls_in_benchmarks,
    crowded_folders,
    long_files,
]


@pytest.fixture(scope="module")
def house() -> dict[str, str]:
    return sources()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_nobody_breaks_the_rule(rule: Rule, house: dict[str, str]) -> None:
    offenders = rule(house)
    assert not offenders, "\n".join(offenders)


# the file that offends, and what it says
PLANTED: list[tuple[Rule, str, str]] = [
    (upward_imports, "dori_fast.models.load", "from dori_fast.cli import main"),
    (upward_imports, "dori_fast.models.load", "def f():\n    import dori_fast.detect.wen"),
    (upward_imports, "dori_fast.models.load", "importlib.import_module('dori_fast.cli')"),
    (upward_imports, "dori_fast.models.load", "__import__('dori_fast.cli')"),
    (upward_imports, "dori_fast.prune.wanda", "from dori_fast.attack import Dori"),
    (upward_imports, "dori_fast.runs.scan", "from dori_fast.report.load import Run"),
    (upward_imports, "dori_fast.errors", "import dori_fast.models.load"),
    (rooms_without_a_floor, "dori_fast.attic", ""),
    (foreign_libraries, "dori_fast.reference.ms_ssim", "import triton.language"),
    (foreign_libraries, "dori_fast.models.load", "from pyarrow import parquet"),
    (imports_from_outside_the_wheel, "dori_fast.demo", "from recipes.training import networks"),
    (imports_from_outside_the_wheel, "dori_fast.cli.bench", "import benchmarks.harness"),
    (
        import_circles,
        "dori_fast.models.engine.engine",
        "if TYPE_CHECKING:\n    from dori_fast.models.denoiser import Denoiser",
    ),
    (import_circles, "benchmarks.harness", "from benchmarks.ops import run"),
    (walls_in_models, "dori_fast.models.files.hashes", "import dori_fast.models.denoiser"),
    (walls_in_models, "dori_fast.models.engine.batch", "import dori_fast.models.backbones.unet"),
    (walls_in_models, "dori_fast.models.backbones.unet.parts", "import dori_fast.models.files"),
    (
        walls_in_models,
        "dori_fast.models.backbones.unet.program",
        "from dori_fast.models.engine.batch import Samples",
    ),
    (walls_in_models, "dori_fast.models.denoiser", "import dori_fast.models.probes"),
    (walls_in_runs, "dori_fast.runs.store.record", "import dori_fast.runs.sources.open"),
    (walls_in_runs, "dori_fast.runs.sources.csv", "import dori_fast.runs.store.manifest"),
    (walls_in_runs, "dori_fast.runs.scoring.score", "import dori_fast.runs.store.directory"),
    (walls_in_runs, "dori_fast.runs.workers.ledger", "import dori_fast.runs.methods.prune"),
    (walls_in_runs, "dori_fast.runs.verify.verify", "import dori_fast.runs.dedup.join"),
    (writers_outside_the_store, "dori_fast.runs.scan", "os.replace(path, other)"),
    (writers_outside_the_store, "dori_fast.runs.scan", "shutil.move(path, other)"),
    (writers_outside_the_store, "dori_fast.runs.scan", "path.rename(other)"),
    (walls_in_benchmarks, "benchmarks.harness", "import benchmarks.speed.scale"),
    (walls_in_benchmarks, "benchmarks.ops.run", "import tests.tiny_model"),
    (long_files, "dori_fast.errors", "\n" * LINES[".py"]),
]


@pytest.mark.parametrize(
    ("rule", "name", "offense"), PLANTED, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_planted_offense_is_named(
    rule: Rule, name: str, offense: str, house: dict[str, str]
) -> None:
    planted = {**house, name: f"{house.get(name, '')}\n{offense}\n"}
    assert [line for line in rule(planted) if name.split(".")[-1] in line]


def test_a_crowded_folder_is_named(house: dict[str, str]) -> None:
    more = {f"dori_fast.ops.one_more_{n}": "" for n in range(FILES_IN_A_FOLDER)}
    assert any(line.startswith("dori_fast.ops has ") for line in crowded_folders(house | more))


def test_a_relative_import_is_refused(house: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"dori_fast\.errors: relative import in line"):
        graph({**house, "dori_fast.errors": "from . import ops"})


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, dori_fast; "
        "heavy = {'torch', 'triton', 'diffusers', 'transformers', 'pyarrow'} & set(sys.modules); "
        "sys.exit(f'import dori_fast loads {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_pictures_show_the_imports_of_today() -> None:
    stale = [
        name
        for name, svg in pictures().items()
        if not (ROOT / "docs" / name).is_file() or (ROOT / "docs" / name).read_text() != svg
    ]
    assert not stale, f"{stale} differ from the source; run python -m docs.floors --write"
