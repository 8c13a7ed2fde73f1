"""What grading a submission gives: one record, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Item:
    """One graded cell. `score` is None where a person has to give it.

    messages: what the student is told, one line each; no hidden value is in them. measured:
    numbers that the check found, by name; never shown to the student.
    """

    points: float
    score: float | None
    messages: tuple[str, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A graded submission.

    items: by the grade_id of the graded cell. notes: what was set right in the notebook, for the
    student. timings: seconds, by step. versions: of the libraries that graded.
    """

    chapter: str
    seed: str
    items: Mapping[str, Item]
    notes: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The sum of what has been scored."""
        return sum(item.score or 0.0 for item in self.items.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Raises ValueError, KeyError, TypeError or AttributeError for what is no result."""
        record = json.loads(text)
        record["items"] = {
            name: Item(item["points"], item["score"], tuple(item["messages"]),
                       dict(item.get("measured", {})))
            for name, item in record["items"].items()
        }
        record["notes"] = tuple(record["notes"])
        return cls(**record)
