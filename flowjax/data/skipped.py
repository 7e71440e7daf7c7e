"""What was left out of a data set, by reason: counted, with the first few names, so that one message says it all."""

import dataclasses
from typing import Any

FIRST = 5  # names kept of each reason


@dataclasses.dataclass
class Skipped:
    """Reasons -> how many and the first few names."""

    reasons: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Counts something that was left out."""
        entry = self.reasons.setdefault(reason, {"count": 0, "first": []})
        entry["count"] += count
        if len(entry["first"]) < FIRST:
            entry["first"].append(name)

    def merge(self, other: "Skipped") -> None:
        """Adds another count to this one."""
        for reason, entry in other.reasons.items():
            mine = self.reasons.setdefault(reason, {"count": 0, "first": []})
            mine["count"] += entry["count"]
            mine["first"] = (mine["first"] + entry["first"])[:FIRST]

    @property
    def count(self) -> int:
        """How many were left out, for all reasons."""
        return sum(entry["count"] for entry in self.reasons.values())

    def message(self) -> str:
        """One line: '3 skipped: corrupt picture 2 (a.png, b.png), picture without a caption 1 (c.png)'."""
        parts = []
        for reason, entry in sorted(self.reasons.items()):
            more = ", ..." if entry["count"] > len(entry["first"]) else ""
            parts.append(f"{reason} {entry['count']:,} ({', '.join(entry['first'])}{more})")
        return f"{self.count:,} skipped: {', '.join(parts)}" if parts else "none skipped"
