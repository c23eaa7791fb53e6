"""A process that loads torch and the model once, then runs experiments on request.

A program of its own, so that it forks from a single thread. It reads one request a line, a JSON
object with ``experiment`` and its arguments, and answers each with one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.faults.lab import disks, kills, states
from tests.faults.lab.lab import Lab

EXPERIMENTS = {
    name: function
    for module in (disks, kills, states)
    for name, function in vars(module).items()
    if callable(function) and not name.startswith("_") and function.__module__ == module.__name__
}


def main(model: str, prompts: str, work: str) -> None:
    """Answer requests until there are no more."""
    lab = Lab(Path(model), Path(prompts), Path(work))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            answer = EXPERIMENTS[request.pop("experiment")](lab, **request)
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
