r"""Captions: scene -> words, words -> what they require, and the verdict of a requirement on a scene.

    caption   = objects ["," "the" phrase relation "the" phrase] ["on a" background "background"] ["with the word" word]
    objects   = group (("," | "and" | relation) group)*
    group     = ("a" | "an" | "two" | ... | "six") phrase
    phrase    = [size] [texture] [colour] (kind | "shape")              kinds and "shape" in the plural after a number
    relation  = "left of" | "right of" | "above" | "below"

A caption names **all** objects of its scene: "three shapes" holds of scenes with exactly three. What it does not say,
it does not require. One relation at most, between two single objects; the words mean that the displacement of the
centres along the axis is larger than across it, and at least HOLDS of that side of the picture. A caption claims a
relation only where it is plain to see: at least CLEAR of the side, and half as much again as across.

Everything works on a closed vocabulary of whole words, id 0 being padding. A batch of captions is drawn as an array of
slots, one a possible word, whose empty ones are squeezed out at the end, so that no row needs a loop of its own.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from flowjax.choices import suggestion
from flowjax.shapes.scenes import LARGE, Scene, SceneLaw
from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, KINDS, MOST_OBJECTS, SIZES, TEXTURES, WORDS

NUMBERS = ("two", "three", "four", "five", "six")
PLURALS = tuple(kind + ("es" if kind.endswith("s") else "s") for kind in KINDS)
RELATIONS = ("left of", "right of", "above", "below")
PADDING = ""
SINGULAR_NOUNS, PLURAL_NOUNS = (*KINDS, "shape"), (*PLURALS, "shapes")
VOCABULARY = (
    (PADDING, "a", "an", "the", *NUMBERS, ",", "and", "of", "left", "right", "above", "below")
    + (*SINGULAR_NOUNS, *PLURAL_NOUNS, *COLOURS, *SIZES, *TEXTURES)
    + ("on", "background", *BACKGROUNDS, "with", "word", *WORDS[1:])
)
IDS = {word: index for index, word in enumerate(VOCABULARY)}

CLEAR, DOMINANCE, HOLDS = 0.25, 1.5, 0.1
COLUMNS = 4  # uniforms that one caption takes
EXAMPLE = "a large striped red circle left of a small blue square on a gray background with the word sun"


def _ids(words: Iterable[str]) -> np.ndarray:
    return np.array([IDS[word] for word in words], np.int32)


_NOUNS = np.stack([_ids(SINGULAR_NOUNS), _ids(PLURAL_NOUNS)])
_COLOURS, _SIZES, _TEXTURES, _BACKGROUNDS = _ids(COLOURS), _ids(SIZES), _ids(TEXTURES), _ids(BACKGROUNDS)
_WORDS = np.array([0, *_ids(WORDS[1:])], np.int32)
_COUNTS = _ids(("a", *NUMBERS))
_RELATIONS = np.array([[IDS[word] for word in (*relation.split(), PADDING)[:2]] for relation in RELATIONS], np.int32)


def relation_between(displacement: Float[np.ndarray, "... 2"], clear: bool = False) -> Int[np.ndarray, "..."]:
    """Index into RELATIONS of the relation of a first object to a second one, -1 where none holds.

    Args:
      displacement: centre of the second minus centre of the first, as fractions of width and height.
      clear: ask for a displacement that nobody would dispute, rather than for the least that makes the words true.
    """
    least, dominance = (CLEAR, DOMINANCE) if clear else (HOLDS, 1.0)
    along = np.abs(displacement)
    level = along[..., 0] > along[..., 1]
    longer, shorter = along.max(-1), along.min(-1)
    index = np.where(level, (displacement[..., 0] < 0) * 1, 2 + (displacement[..., 1] < 0))
    return np.where((longer >= least) & (longer > dominance * shorter), index, -1)


@dataclasses.dataclass(frozen=True)
class CaptionLaw:
    """How captions are drawn.

    Attributes:
      full: the share of full captions, which say size, texture, colour and kind of every object and the background;
        short ones say colour and kind. Words are said by both. (A small object is always plain: that is not said.)
      relations: the share of captions that claim a relation, among those that can.
      loose: the share of short captions that leave out the colour, the kind or both ("two red shapes", "three shapes").
    """

    full: float = 0.0
    relations: float = 0.5
    loose: float = 0.1

    def __post_init__(self):
        for name, share in dataclasses.asdict(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: expected a share from 0 to 1.")

    def longest(self, scenes: SceneLaw) -> int:
        """A number of tokens that no caption of this law of scenes exceeds."""
        most = scenes.objects[1]
        phrase = 3 if not self.full else 5 if self.full and "large" in scenes.sizes else 4
        relation = 0 if most < 2 or not self.relations else 1
        if self.full and self.relations and most > 2:
            relation = 2 * phrase + 3
        return most * phrase + (most - 1) + relation + 4 * (self.full > 0) + 4 * (scenes.words > 0)

    def draw(self, scene: Scene, uniforms: Float[np.ndarray, "n c"]) -> Int[np.ndarray, "n l"]:
        """One caption for each scene, as token ids padded with 0 to the longest of the batch.

        Args:
          scene: n scenes.
          uniforms: [n, COLUMNS]; a caption is a function of its scene and its row alone.
        """
        full = uniforms[:, 0] < self.full
        loose = ~full & (uniforms[:, 1] < self.loose)
        # Of the loose ones, a third each leave out the colour, the kind, and both.
        manner = np.minimum((uniforms[:, 1] / max(self.loose, 1e-12) * 3).astype(int), 2)
        says_colour, says_kind = ~(loose & (manner != 1)), ~(loose & (manner != 0))
        phrase = _phrases(scene, full, says_colour, says_kind)
        same = (phrase[:, :, None] == phrase[:, None, :]).all(-1) & scene.present[:, None, :]
        first = scene.present & ~np.tril(same, -1).any(2)
        number = same.sum(2)
        alone = scene.present & (number == 1)

        wants = uniforms[:, 2] < self.relations
        pair = wants & (scene.count == 2) & alone[:, 1]
        between = relation_between(scene.centre[:, 1] - scene.centre[:, 0], clear=True)
        between = np.where(pair, between, -1)
        slots = [_groups(phrase, first, number, says_kind, between)]
        if self.full and self.relations:
            slots.append(_clause(scene, phrase, alone, wants & full & (scene.count > 2), uniforms[:, 3]))
        slots.append(_phrase_of("on", "a", _BACKGROUNDS[scene.background], "background", given=full))
        slots.append(_phrase_of("with", "the", "word", _WORDS[scene.word], given=scene.word > 0))
        slots = np.concatenate(slots, axis=1)
        packed = np.take_along_axis(slots, np.argsort(slots == 0, axis=1, kind="stable"), axis=1)
        return packed[:, : max((slots > 0).sum(1).max(initial=1), 1)]


def _phrases(scene, full, says_colour, says_kind):
    """Size, texture, colour and noun (singular) of every object, ids [n, 6, 4], 0 where unsaid or absent."""
    size = np.where(full[:, None], _SIZES[scene.size], 0)
    texture = np.where(full[:, None] & (scene.size == LARGE), _TEXTURES[scene.texture], 0)
    colour = np.where(says_colour[:, None], _COLOURS[scene.colour], 0)
    noun = np.where(says_kind[:, None], _NOUNS[0][scene.kind], IDS["shape"])
    return np.where(scene.present[..., None], np.stack([size, texture, colour, noun], axis=-1), 0)


def _article(phrase):
    """The token before a single phrase: only "orange" needs "an", where it comes first."""
    return np.where((phrase[..., :2].sum(-1) == 0) & (phrase[..., 2] == IDS["orange"]), IDS["an"], IDS["a"])


def _groups(phrase, first, number, says_kind, between):
    """The list of objects, alike ones counted together: [n, 6 groups of separator (2), number and phrase (5)]."""
    n = len(phrase)
    rank, total = np.cumsum(first, axis=1) - 1, first.sum(1)[:, None]
    separator = np.where(rank == 0, 0, np.where(rank == total - 1, IDS["and"], IDS[","]))
    separator = np.stack([separator, np.zeros_like(separator)], axis=-1)
    separator[:, 1] = np.where(between[:, None] >= 0, _RELATIONS[between], separator[:, 1])
    counted = np.where(number == 1, _article(phrase), _COUNTS[np.maximum(number, 1) - 1])
    phrase = phrase.copy()
    # Plurals follow singulars in the vocabulary, in the same order.
    phrase[..., 3] += np.where(number > 1, len(SINGULAR_NOUNS), 0)
    slots = np.concatenate([separator, counted[..., None], phrase], axis=-1)
    return np.where(first[..., None], slots, 0).reshape(n, -1)


def _clause(scene, phrase, alone, wants, uniform):
    """ ", the phrase relation the phrase" for one of the pairs in clear relation: [n, 13] ids, 0 where there is none."""
    between = relation_between(scene.centre[:, None] - scene.centre[:, :, None], clear=True)
    valid = (between >= 0) & alone[:, :, None] & alone[:, None, :]
    valid = valid.reshape(len(between), -1)
    rank = (uniform * valid.sum(1)).astype(int) + 1
    pair = (np.cumsum(valid, axis=1) == rank[:, None]).argmax(1)
    rows = np.arange(len(pair))
    one, other = phrase[rows, pair // MOST_OBJECTS], phrase[rows, pair % MOST_OBJECTS]
    relation = _RELATIONS[between.reshape(len(between), -1)[rows, pair]]
    head, article = np.full((len(pair), 2), [IDS[","], IDS["the"]]), np.full((len(pair), 1), IDS["the"])
    slots = np.concatenate([head, one, relation, article, other], axis=1)
    return np.where((wants & valid.any(1))[:, None], slots, 0)


def _phrase_of(*words, given):
    """Fixed words and ids [n] side by side, [n, k]; 0 in the rows where the phrase is not given."""
    columns = [np.full(len(given), IDS[word]) if isinstance(word, str) else word for word in words]
    return np.where(given[:, None], np.stack(columns, axis=1), 0)


def split_words(caption: str) -> list[str]:
    """The words of a caption, commas apart; a word outside the vocabulary is an error that suggests one inside."""
    words = caption.lower().replace(",", " , ").split()
    for word in words:
        if word not in IDS:
            raise ValueError(
                f"Unknown word '{word}' in the caption '{caption}'.{suggestion(word, VOCABULARY[1:])} A caption reads "
                f"like '{EXAMPLE}'."
            )
    return words


def tokenize(captions: Sequence[str], length: int) -> Int[np.ndarray, "n l"]:
    """Captions as ids, [n, length] int32, padded with 0."""
    tokens = np.zeros((len(captions), length), np.int32)
    for row, caption in enumerate(captions):
        words = split_words(caption)
        if len(words) > length:
            raise ValueError(
                f"The caption '{caption}' has {len(words)} words, but {length} fit. Say less, or set text_length="
                f"{len(words)} or more."
            )
        tokens[row, : len(words)] = [IDS[word] for word in words]
    return tokens


def detokenize(tokens: Int[np.ndarray, "n l"]) -> list[str]:
    """Ids as captions; padding is left out."""
    return [" ".join(VOCABULARY[i] for i in row if i).replace(" ,", ",") for row in np.asarray(tokens)]
