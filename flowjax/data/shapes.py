r"""Captioned scenes for ever: text to image that anyone has offline, and that a parser can mark without mercy.

The rooms of flowjax/shapes draw a scene, its pixels and its caption from one row of uniforms, so row i of step k is a
function of (seed, step, row) alone. `train`, `test` and `held_out` are different streams of numbers; the last one holds
combinations of kind and colour, or kind and texture, that occur in neither of the others (flowjax/shapes/scenes.py).
"""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Float, Int

from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.fingerprints import plain_hash
from flowjax.data.sources import check_split, endless
from flowjax.data.tokenizers import text_facts
from flowjax.shapes import captions as captioning
from flowjax.shapes import scenes
from flowjax.shapes.captions import VOCABULARY, CaptionLaw
from flowjax.shapes.render import render
from flowjax.shapes.scenes import Scene, SceneLaw
from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, KINDS, SIZES, TEXTURES

SPLITS = ("train", "test", "all", "held_out")
FULL = {"short": 0.0, "both": 0.5, "full": 1.0}
MEASURED = 1024  # scenes that `std` is measured on
LEVELS = 256
CAPTIONED = scenes.COLUMNS + captioning.COLUMNS  # uniforms of a scene and its caption


@dataclasses.dataclass(frozen=True)
class SceneTokenizer:
    """The closed vocabulary of scenes as a tokenizer (flowjax/data/tokenizers.py); always strict.

    Attributes:
      length: ids in a row.
    """

    length: int
    vocabulary: int = len(VOCABULARY)

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "n l"]:
        """Ids of captions. An unknown word, or a caption that does not fit, is an error."""
        return captioning.tokenize(texts, self.length)

    def decode(self, ids: Int[np.ndarray, "n l"]) -> list[str]:
        """Captions of ids."""
        return captioning.detokenize(ids)

    def fingerprint(self) -> str:
        """Of the words and the length."""
        return plain_hash(name="shapes", words=VOCABULARY, length=self.length)


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """Scenes of a law, rendered, with their captions as tokens. Make one with `shapes`.

    Attributes:
      scene_law: the distribution of scenes.
      caption_law: how captions are drawn.
      spec: the data's spec, shape (height, width, 3).
      tokenizer: captions to ids.
      wrong: the share of training captions that are of another scene.
    """

    scene_law: SceneLaw
    caption_law: CaptionLaw
    spec: DataSpec
    tokenizer: SceneTokenizer
    wrong: float = 0.0
    oracle: None = None
    size: None = None
    levels: int = LEVELS

    def _draw(self, uniforms: Float[np.ndarray, "n c"], split: str) -> tuple[Scene, dict[str, np.ndarray]]:
        scene, tokens = self.described(uniforms, split)
        height, width, _ = self.spec.shape
        return scene, {"data": to_unit(render(scene, height, width)), "tokens": tokens}

    def described(self, uniforms: Float[np.ndarray, "n c"], split: str) -> tuple[Scene, Int[np.ndarray, "n l"]]:
        """Scenes of the law and a true caption of each, padded.

        Args:
          uniforms: of which the first CAPTIONED are read.
          split: of the scenes: train, test or held_out.
        """
        scene = self.scene_law.draw(uniforms[:, : scenes.COLUMNS], split)
        drawn = self.caption_law.draw(scene, uniforms[:, scenes.COLUMNS : CAPTIONED])
        tokens = np.zeros((len(scene), self.tokenizer.length), np.int32)
        tokens[:, : drawn.shape[1]] = drawn
        return scene, tokens

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: fresh scenes for the rows start..stop of step k."""

        def item(step: int) -> dict[str, np.ndarray]:
            rows = self._draw(_uniforms(seed, draws.TRAIN, step, start, stop), "train")[1]
            if not self.wrong:
                return rows
            mistakes = draws.row_uniforms(seed, draws.MISTAKE, step, start, stop, CAPTIONED + 1)
            _, others = self.described(mistakes, "train")
            return rows | {"tokens": np.where(mistakes[:, CAPTIONED:] < self.wrong, others, rows["tokens"])}

        return endless(item)

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """`count` fresh scenes (10,000 unless told): other ones for every split and seed, never a training scene.

        Args:
          split: train, test, all (the law of both) or held_out: only scenes with a held-out combination.
          count: how many.
          seed: which.
        """
        return self.examples(split, 10_000 if count is None else count, seed)[1]

    def examples(self, split: str, count: int, seed: int = 0) -> tuple[Scene, dict[str, np.ndarray]]:
        """What `reference` gives, and the scenes behind it."""
        check_split(split, SPLITS)
        stream = draws.REFERENCE_TRAIN if split == "train" else draws.REFERENCE_TEST
        law = "held_out" if split == "held_out" else "test"
        return self._draw(_uniforms(seed, stream, 0, 0, count), law)

    def fingerprint(self) -> str:
        """A hash of the two laws, the size of the pictures and the words."""
        return plain_hash(
            scenes=dataclasses.asdict(self.scene_law),
            captions=dataclasses.asdict(self.caption_law),
            shape=self.spec.shape,
            tokenizer=self.tokenizer.fingerprint(),
            **({"wrong": self.wrong} if self.wrong else {}),
        )


def _uniforms(seed: int, stream: int, step: int, start: int, stop: int) -> Float[np.ndarray, "n c"]:
    return draws.row_uniforms(seed, stream, step, start, stop, CAPTIONED)


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def shapes(
    resolution: int = 32,
    height: int | None = None,
    width: int | None = None,
    objects: tuple = (1, 2),
    captions: str | float = "short",
    count_weights: tuple | None = None,
    kinds: tuple = KINDS,
    colours: tuple = tuple(COLOURS),
    sizes: tuple = tuple(SIZES),
    textures: tuple = TEXTURES,
    backgrounds: tuple = tuple(BACKGROUNDS),
    textured: float = 0.5,
    words: float = 0.0,
    held_out: bool = True,
    relations: float = 0.5,
    loose: float = 0.1,
    wrong: float = 0.0,
    text_length: int | None = None,
) -> SceneSource:
    """Scenes of coloured objects with captions: [height, width, 3] in [-1, 1], tokens of a closed vocabulary.

    Args:
      resolution: height and width, unless one of them is given.
      height: of the pictures.
      width: of the pictures.
      objects: the least and the largest number of objects, up to six.
      captions: 'short' (colour and kind), 'full' (every attribute), 'both', or the share of full ones.
      count_weights: relative shares of the numbers of objects; equal unless told.
      kinds: the kinds of objects; likewise colours, sizes, textures, backgrounds (flowjax/shapes/vocabulary.py).
      colours: see kinds.
      sizes: see kinds.
      textures: see kinds; only large objects have one.
      backgrounds: see kinds.
      textured: the share of large objects that are not plain.
      words: the share of scenes with a written word; at 32 x 32 and above it can be read.
      held_out: whether held-out combinations are left out of training and test scenes.
      relations: the share of captions that claim a relation, among those that can.
      loose: the share of short captions that leave out colour or kind ("two red shapes").
      wrong: the share of training captions that are of another scene, as some of the web's are; those of `reference`, which
        models are measured with, are right.
      text_length: tokens of a caption; the longest there can be, unless told. Sources in a mixture need the same.
    """
    if not isinstance(captions, str):
        full = float(captions)
    elif captions in FULL:
        full = FULL[captions]
    else:
        raise ValueError(f"captions='{captions}'; expected one of {', '.join(FULL)}, or a share of full captions.")
    if len(objects) != 2:
        raise ValueError(f"objects={objects}; expected (least, most), as in (1, 2).")
    if not 0 <= wrong < 1:
        raise ValueError(f"wrong={wrong}: expected a share of captions, at least 0 and less than 1.")
    scene_law = SceneLaw(
        objects=tuple(objects),
        count_weights=None if count_weights is None else tuple(count_weights),
        kinds=tuple(kinds),
        colours=tuple(colours),
        sizes=tuple(sizes),
        textures=tuple(textures),
        backgrounds=tuple(backgrounds),
        textured=float(textured),
        words=float(words),
        held_out=held_out,
    )
    caption_law = CaptionLaw(full=full, relations=float(relations), loose=float(loose))
    longest = caption_law.longest(scene_law)
    length = longest if text_length is None else text_length
    if length < longest:
        raise ValueError(f"text_length={length}, but captions of this law have up to {longest} tokens. Allow for them.")
    height, width = height or resolution, width or resolution
    tokenizer = SceneTokenizer(length)
    spec = DataSpec((height, width, 3), **text_facts(tokenizer))
    source = SceneSource(scene_law, caption_law, spec, tokenizer, float(wrong))
    # Measured once on scenes of their own, at a size where that takes a moment.
    scene = scene_law.draw(_uniforms(0, draws.MEASURE, 0, 0, MEASURED)[:, : scenes.COLUMNS])
    shrink = min(1.0, 64 / min(height, width))
    small = render(scene, round(height * shrink), round(width * shrink))
    return dataclasses.replace(source, spec=dataclasses.replace(spec, std=float(to_unit(small).std())))
