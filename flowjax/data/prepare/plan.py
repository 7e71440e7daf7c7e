"""What a preparation will write, decided before anything is written, so that a run that was cut off can be gone on with."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flowjax.data.skipped import Skipped

Example = tuple[str, dict[str, Any] | Exception]  # a name for messages, and the fields or why there are none


@dataclasses.dataclass(frozen=True)
class Plan:
    """A data set about to be written.

    Attributes:
      name: the name of its folder in the data home.
      command: what prepares it, for messages.
      counts: split -> how many examples there are to read.
      read: (split, start, stop) -> (name, fields or BadPicture) of those examples, in order. A record has `image` and
        may have `caption` (text, or a list of them), `label`, and anything else that a record can hold.
      sources: where the data comes from: package or folder, version, licence, attribution, hash.
      options: what was chosen (size, fit, share held out).
      labels: the names of the classes.
      group: the field whose values the card counts (style, label).
      skipped: what was left out while the plan was made.
    """

    name: str
    command: str
    counts: Mapping[str, int]
    read: Callable[[str, int, int], Iterator[Example]]
    sources: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: Sequence[str] = ()
    group: str = ""
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    def identity(self, **more: Any) -> str:
        """A hash of everything that decides what is written: shards of another identity are never mixed in."""
        facts = [
            self.name,
            dict(self.counts),
            list(map(dict, self.sources)),
            dict(self.options),
            list(self.labels),
            more,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
