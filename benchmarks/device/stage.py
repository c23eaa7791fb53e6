"""A stage, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """A command with a time limit.

    Attributes:
        name: the name on the command line.
        limit: seconds after which the stage is ended; rows recorded until then are kept.
        command: the command, run in the project's root.
        question: question that the stage's rows answer.
        call: number of the call to which the stage belongs; 0 for one that prepares every call.
        environment: environment variables besides the run's.
        accepted: exit codes that are no failure.
        missing: reason to skip the stage; empty if there is none.
    """

    name: str
    limit: float
    command: tuple[str, ...]
    question: str = ""
    call: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    accepted: tuple[int, ...] = (0,)
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    """End of a stage: `state` is "ok", "failed", "timed out", "skipped" or "not reached"."""

    stage: str
    state: str
    code: int | None
    seconds: float
    why: str = ""

    @property
    def bad(self) -> bool:
        """Whether the run has failed with it."""
        return self.state in ("failed", "timed out", "not reached")
