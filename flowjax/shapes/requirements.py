r"""What a caption requires, and whether a scene meets it: the judge of every picture made from words.

`understand` reads captions of the grammar in flowjax/shapes/captions.py into arrays; `judge` holds scenes against them.
The verdict per attribute asks whether every object asked for has a partner with that attribute, more objects being the
fault of the count alone:

    colour    for each colour, at least as many objects as the caption names; likewise kind, size, texture
    count     exactly as many objects as the caption names
    relation  two different objects that fit the two phrases, and stand as the caption says
    all       one assignment of all objects to all phrases in which every attribute fits and the relation holds, and the
              background and the word fit

so right colours on wrong kinds pass `colour` and `kind`, and fail `all`: that is where the binding of attributes shows.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from flowjax.shapes.captions import (
    EXAMPLE,
    NUMBERS,
    PLURAL_NOUNS,
    RELATIONS,
    SINGULAR_NOUNS,
    relation_between,
    split_words,
)
from flowjax.shapes.scenes import Scene
from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, KINDS, MOST_OBJECTS, SIZES, TEXTURES, WORDS

ATTRIBUTES = ("kind", "colour", "size", "texture")
VERDICTS = ("count", *ATTRIBUTES, "relation", "background", "word", "all")

_UNSAID = -1


@dataclasses.dataclass(frozen=True)
class Requirement:
    """What n captions require; -1 wherever a caption says nothing.

    Attributes:
      count: the number of objects, int [n].
      kind: index into KINDS for each object, int [n, 6]; colour, size and texture likewise.
      relation: index into RELATIONS, int [n].
      related: the two objects in that relation, int [n, 2].
      background: index into BACKGROUNDS, int [n].
      word: index into WORDS, int [n].
    """

    count: Int[np.ndarray, " n"]
    kind: Int[np.ndarray, "n 6"]
    colour: Int[np.ndarray, "n 6"]
    size: Int[np.ndarray, "n 6"]
    texture: Int[np.ndarray, "n 6"]
    relation: Int[np.ndarray, " n"]
    related: Int[np.ndarray, "n 2"]
    background: Int[np.ndarray, " n"]
    word: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.count)


class _Reader:
    """Reads the words of one caption from left to right."""

    def __init__(self, caption: str):
        self.caption, self.words, self.at = caption, split_words(caption), 0

    def next_is(self, *words: str) -> bool:
        return tuple(self.words[self.at : self.at + len(words)]) == words

    def take(self, *words: str) -> bool:
        """Steps over the words if they come next."""
        found = self.next_is(*words)
        self.at += len(words) * found
        return found

    def one_of(self, names: Sequence[str]) -> int:
        """Steps over one of the names and returns its index; -1 when none of them comes next."""
        if self.at < len(self.words) and self.words[self.at] in names:
            self.at += 1
            return list(names).index(self.words[self.at - 1])
        return _UNSAID

    def fail(self, expected: str) -> ValueError:
        before = f" after '{' '.join(self.words[: self.at])}'" if self.at else ""
        found = f"'{self.words[self.at]}'" if self.at < len(self.words) else "the end"
        return ValueError(
            f"The caption '{self.caption}' cannot be read: expected {expected}{before}, found {found}. A caption reads "
            f"like '{EXAMPLE}'."
        )

    def relation(self) -> int:
        for index, relation in enumerate(RELATIONS):
            if self.take(*relation.split()):
                return index
        return _UNSAID

    def phrase(self, plural: bool) -> tuple[int, ...]:
        """kind, colour, size, texture."""
        size, texture, colour = self.one_of(tuple(SIZES)), self.one_of(TEXTURES), self.one_of(tuple(COLOURS))
        kind = self.one_of(PLURAL_NOUNS if plural else SINGULAR_NOUNS)
        if kind == _UNSAID:
            raise self.fail(f"a {'plural' if plural else 'singular'} shape")
        return kind if kind < len(KINDS) else _UNSAID, colour, size, texture

    def group(self) -> tuple[int, tuple[int, ...]]:
        number = self.one_of(("a", "an", *NUMBERS))
        if number == _UNSAID:
            raise self.fail("a number")
        count = max(number, 1)
        return count, self.phrase(plural=count > 1)


@functools.lru_cache(maxsize=65536)
def _read(caption: str) -> tuple:
    """(phrases of all objects, relation, the two related objects, background, word)."""
    reader = _Reader(caption)
    phrases, relation, related = [], _UNSAID, (_UNSAID, _UNSAID)
    waiting = False
    while True:
        count, phrase = reader.group()
        if waiting:
            related, waiting = (len(phrases) - 1, len(phrases)), False
            if count > 1:
                raise ValueError(f"The caption '{caption}' relates a group; a relation holds between single objects.")
        phrases += [phrase] * count
        if reader.next_is(",", "the"):
            break
        if reader.take(",") or reader.take("and"):
            continue
        before = relation
        found = reader.relation()
        if found == _UNSAID:
            break
        if before != _UNSAID:
            raise ValueError(f"The caption '{caption}' claims more than one relation; one is understood.")
        if count > 1:
            raise ValueError(f"The caption '{caption}' relates a group; a relation holds between single objects.")
        relation, waiting = found, True
    if len(phrases) > MOST_OBJECTS:
        raise ValueError(f"The caption '{caption}' asks for {len(phrases)} objects; a scene holds {MOST_OBJECTS}.")
    if reader.take(",", "the"):
        if relation != _UNSAID:
            raise ValueError(f"The caption '{caption}' claims more than one relation; one is understood.")
        one = reader.phrase(plural=False)
        relation = reader.relation()
        if relation == _UNSAID:
            raise reader.fail(f"one of {', '.join(RELATIONS)}")
        if not reader.take("the"):
            raise reader.fail("'the'")
        other = reader.phrase(plural=False)
        for name in (one, other):
            if phrases.count(name) != 1:
                raise ValueError(
                    f"The caption '{caption}' relates an object that it names {phrases.count(name)} times before; name "
                    "it once, in the same words."
                )
        related = (phrases.index(one), phrases.index(other))
        if one == other:
            raise ValueError(f"The caption '{caption}' relates an object to itself.")
    background = word = _UNSAID
    if reader.take("on", "a"):
        background = reader.one_of(tuple(BACKGROUNDS))
        if background == _UNSAID:
            raise reader.fail(f"one of {', '.join(BACKGROUNDS)}")
        if not reader.take("background"):
            raise reader.fail("'background'")
    if reader.take("with", "the", "word"):
        word = reader.one_of(WORDS)
        if word == _UNSAID:
            raise reader.fail(f"one of {', '.join(WORDS[1:])}")
    if reader.at < len(reader.words):
        raise reader.fail("the end")
    return phrases, relation, related, background, word


def understand(captions: Sequence[str] | str) -> Requirement:
    """What captions require. One that is not of the grammar is an error that says where and what was expected."""
    captions = [captions] if isinstance(captions, str) else captions
    n = len(captions)
    attributes = np.full((n, MOST_OBJECTS, len(ATTRIBUTES)), _UNSAID, np.int32)
    count, relation, background, word = (np.full(n, _UNSAID, np.int32) for _ in range(4))
    related = np.full((n, 2), _UNSAID, np.int32)
    for row, caption in enumerate(captions):
        phrases, relation[row], related[row], background[row], word[row] = _read(caption)
        count[row] = len(phrases)
        attributes[row, : len(phrases)] = phrases
    return Requirement(
        count=count,
        relation=relation,
        related=related,
        background=background,
        word=word,
        **{name: attributes[:, :, i] for i, name in enumerate(ATTRIBUTES)},
    )


@functools.cache
def _assignments(objects: int) -> np.ndarray:
    """All orders of a number of objects, [objects!, objects]."""
    return np.array(list(itertools.permutations(range(objects))), np.int64)


def _fitting(scene: Scene, requirement: Requirement) -> tuple[np.ndarray, np.ndarray]:
    """fits[n, phrase, object], and stands[n, object, object]: whether the first stands to the second as required."""
    fits = (np.arange(MOST_OBJECTS) < requirement.count[:, None])[:, :, None] & scene.present[:, None, :]
    for name in ATTRIBUTES:
        asked, found = getattr(requirement, name)[:, :, None], getattr(scene, name)[:, None, :]
        fits = fits & ((asked == _UNSAID) | (asked == found))
    between = relation_between(scene.centre[:, None] - scene.centre[:, :, None])
    stands = (between == requirement.relation[:, None, None]) | (requirement.relation[:, None, None] == _UNSAID)
    return fits, stands


def _assignable(fits, stands, requirement, count):
    """Whether some assignment of objects to phrases fits everywhere, for rows that agree on the number of objects."""
    right = np.zeros(len(fits), bool)
    for objects in range(1, MOST_OBJECTS + 1):
        rows = np.flatnonzero((count == objects) & (requirement.count == objects))
        if not len(rows):
            continue
        orders = _assignments(objects)
        good = np.ones((len(rows), len(orders)), bool)
        for phrase in range(objects):
            good &= fits[rows, phrase][:, orders[:, phrase]]
        one, other = (orders[:, requirement.related[rows, i]].T for i in (0, 1))
        good &= stands[rows[:, None], one, other] | (requirement.relation[rows, None] == _UNSAID)
        right[rows] = good.any(1)
    return right


def judge(scene: Scene, requirement: Requirement) -> dict[str, Float[np.ndarray, " n"]]:
    """Holds n scenes against n requirements: for each of VERDICTS 1 right, 0 wrong, nan where the caption is silent.

    The mean of the numbers (np.nanmean) is the accuracy of that attribute.
    """
    if len(scene) != len(requirement):
        raise ValueError(f"{len(scene)} scenes are held against {len(requirement)} captions; expected one for each.")
    fits, stands = _fitting(scene, requirement)
    rows = np.arange(len(scene))
    said, right = {}, {}
    said["count"], right["count"] = np.ones(len(scene), bool), scene.count == requirement.count
    for name in ATTRIBUTES:
        asked, found = getattr(requirement, name), np.where(scene.present, getattr(scene, name), _UNSAID - 1)
        values = np.arange(max(asked.max(initial=0), 0) + 1)
        enough = (found[:, :, None] == values).sum(1) >= (asked[:, :, None] == values).sum(1)
        said[name], right[name] = (asked != _UNSAID).any(1), enough.all(1)
    one, other = fits[rows, requirement.related[:, 0]], fits[rows, requirement.related[:, 1]]
    pairs = one[:, :, None] & other[:, None, :] & stands & ~np.eye(MOST_OBJECTS, dtype=bool)
    said["relation"], right["relation"] = requirement.relation != _UNSAID, pairs.any((1, 2))
    for name in ("background", "word"):
        asked = getattr(requirement, name)
        said[name], right[name] = asked != _UNSAID, asked == getattr(scene, name)
    every = _assignable(fits, stands, requirement, scene.count)
    for name in ("background", "word"):
        # What is there and cannot be read (-1, see flowjax/shapes/parse.py) is wrong, whatever the caption leaves open.
        every &= (right[name] | ~said[name]) & (getattr(scene, name) >= 0)
    said["all"], right["all"] = np.ones(len(scene), bool), every
    return {name: np.where(said[name], right[name].astype(float), np.nan) for name in VERDICTS}
