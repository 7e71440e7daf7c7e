r"""Comparisons of scenes (data/shapes.py) under one caption, by a score that is known for every picture.

| kind     | pictures of a comparison                                       | score                                      |
| caption  | the scene that the caption was written of, once as it is and   | minus the number of colours and kinds that |
|          | once or more with some colours and kinds changed               | are wrong                                  |
| degraded | one scene, blurred, noisy or in blocks (data/degradations.py)  | minus the damage in units of 8 grey        |
|          |                                                                | levels                                     |
| style    | scenes that the caption fits, of other sizes, places and       | lightness of the background + share of     |
|          | backgrounds                                                    | large objects, each from -1 to 1, times    |
|          |                                                                | the taste for it                           |

The caption says the colour and the kind of every object. What is wrong with a changed scene is counted after its objects have
been matched with those of the caption as well as they can be: a red circle and a blue square that have changed their colours
are two mistakes, two circles that have changed places are none. Damage is what has become of the pixels, not the strength that
was asked for: of weak blurs nothing is left in a small picture, and nobody could tell them apart.
"""

import dataclasses
import functools
import itertools

import numpy as np
from jaxtyping import Float, Int

from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.degradations import DEGRADATIONS, damage, degrade
from flowjax.data.judgements import JudgedSource, Judgement, distinct_levels
from flowjax.data.shapes import CAPTIONED, LEVELS, SceneSource, shapes, to_unit
from flowjax.shapes import scenes
from flowjax.shapes.render import render
from flowjax.shapes.scenes import HELD_OUT_COLOURS, LARGE, Scene, SceneLaw
from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, KINDS, MOST_OBJECTS, SIZES

MOST_WRONG = 3
DAMAGE = 8.0  # grey levels that cost a point
_LIGHT = np.array([np.mean(colour) for colour in BACKGROUNDS.values()])
LIGHTNESS = 2 * (_LIGHT - _LIGHT.min()) / (_LIGHT.max() - _LIGHT.min()) - 1


def mistakes(scene: Scene, asked: Scene) -> Int[np.ndarray, " n"]:
    """How many colours and kinds of a scene differ from those asked for, objects matched as well as they can be.

    Args:
      scene: what is shown.
      asked: scenes with as many objects each.
    """
    wrong = (scene.kind[:, None] != asked.kind[:, :, None]).astype(int)  # [n, asked, shown]
    wrong += scene.colour[:, None] != asked.colour[:, :, None]
    fewest = np.zeros(len(scene), int)
    for count in np.unique(scene.count):
        rows = np.flatnonzero(scene.count == count)
        orders = np.array(list(itertools.permutations(range(count))))
        totals = wrong[rows][:, np.arange(count), orders].sum(axis=-1)  # [rows, orders]
        fewest[rows] = totals.min(axis=1)
    return fewest


def changed(scene: Scene, changes: Int[np.ndarray, " n"], uniforms: Float[np.ndarray, "n c"], law: SceneLaw) -> Scene:
    """Scenes with some of their colours and kinds replaced by others of the law.

    Args:
      scene: n scenes.
      changes: how many colours and kinds of each, at most two for each object.
      uniforms: 3 x MOST_OBJECTS: which colours and kinds change, and what each object becomes.
      law: of scenes; held-out combinations are avoided where it leaves them out.
    """
    places = 2 * MOST_OBJECTS
    order = np.where(np.repeat(scene.present, 2, axis=1), uniforms[:, :places], 2.0)
    rank = np.argsort(np.argsort(order, axis=1), axis=1)
    touched = (rank < changes[:, None]).reshape(-1, MOST_OBJECTS, 2)
    u = uniforms[:, places : places + MOST_OBJECTS]
    allowed = np.zeros((len(KINDS), len(COLOURS)), bool)
    allowed[np.ix_([KINDS.index(k) for k in law.kinds], [list(COLOURS).index(c) for c in law.colours])] = True
    if law.held_out:
        allowed &= ~HELD_OUT_COLOURS
    # A new pair of kind and colour that differs in what is touched, and in nothing else.
    kinds, colours = np.divmod(np.arange(allowed.size), len(COLOURS))
    fits = allowed.ravel() & ((kinds != scene.kind[..., None]) == touched[..., 0:1])
    fits &= (colours != scene.colour[..., None]) == touched[..., 1:2]
    stays = ~fits.any(-1)  # a law of one kind cannot change it
    pick = (np.cumsum(fits, axis=-1) == ((u * fits.sum(-1)).astype(int) + 1)[..., None]).argmax(-1)
    keep = stays | ~scene.present | ~touched.any(-1)
    kind = np.where(keep, scene.kind, kinds[pick]).astype(np.int32)
    colour = np.where(keep, scene.colour, colours[pick]).astype(np.int32)
    return dataclasses.replace(scene, kind=kind, colour=colour)


@dataclasses.dataclass(frozen=True)
class _Drawer:
    """Draws the pictures of comparisons, by kind; see the module header."""

    base: SceneSource
    examples: int
    taste: tuple[float, float] = (1.0, 1.0)

    def _captioned(self, uniforms: np.ndarray) -> tuple[Scene, dict[str, np.ndarray]]:
        scene, tokens = self.base.described(uniforms, "train")
        return scene, {"tokens": tokens}

    def _render(self, scene: Scene) -> np.ndarray:
        return render(scene, *self.base.spec.shape[:2])

    def _stacked(self, pictures: list[np.ndarray]) -> np.ndarray:
        return to_unit(np.stack(pictures, axis=1))

    def caption(self, uniforms: np.ndarray, split: str):
        """Some of the pictures do not show what was asked for."""
        scene, conditions = self._captioned(uniforms)
        rest = uniforms[:, CAPTIONED:]
        most = np.minimum(2 * scene.count, max(MOST_WRONG, self.examples - 1))
        levels = distinct_levels(rest[:, : self.examples], most)
        rest = rest[:, self.examples :].reshape(len(rest), self.examples, -1)
        shown = [changed(scene, levels[:, i], rest[:, i], self.base.scene_law) for i in range(self.examples)]
        scores = -np.stack([mistakes(one, scene) for one in shown], axis=1).astype(np.float64)
        return self._stacked([self._render(one) for one in shown]), scores, conditions

    def degraded(self, uniforms: np.ndarray, split: str):
        """One picture, more or less degraded."""
        scene, conditions = self._captioned(uniforms)
        which, strength, seeds = np.split(uniforms[:, CAPTIONED:], 3, axis=1)
        which, whole = (which * len(DEGRADATIONS)).astype(int), self._render(scene)
        made = [degrade(whole, which[:, i], strength[:, i], seeds[:, i]) for i in range(self.examples)]
        scores = -np.stack([damage(one, whole) for one in made], axis=1) / DAMAGE
        return self._stacked(made), scores, conditions

    def style(self, uniforms: np.ndarray, split: str):
        """The same objects, drawn in other ways."""
        scene, conditions = self._captioned(uniforms)
        rest = uniforms[:, CAPTIONED:].reshape(len(uniforms), self.examples, scenes.COLUMNS)
        made, scores = [], []
        for i in range(self.examples):
            own = rest[:, i].copy()
            own[:, 0] = uniforms[:, 0]  # which decides how many objects there are
            fresh = self.base.scene_law.draw(own, "train")
            fresh = dataclasses.replace(fresh, kind=scene.kind, colour=scene.colour)
            large = ((fresh.size == LARGE) & fresh.present).sum(1) / fresh.count
            scores.append(self.taste[0] * LIGHTNESS[fresh.background] + self.taste[1] * (2 * large - 1))
            made.append(self._render(fresh))
        return self._stacked(made), np.stack(scores, axis=1), conditions

    @property
    def columns(self) -> dict[str, int]:
        """Kind -> uniforms that a comparison takes."""
        own = dict(caption=1 + 3 * MOST_OBJECTS, degraded=3, style=scenes.COLUMNS)
        return {name: CAPTIONED + self.examples * count for name, count in own.items()}


def compared_shapes(
    kind: str = "caption",
    resolution: int = 32,
    objects: tuple = (1, 2),
    sizes: tuple = tuple(SIZES),
    examples: int = 2,
    temperature: float = 1.0,
    theta: float = 1.0,
    taste: tuple | None = None,
    captions: bool = True,
) -> JudgedSource:
    """Pictures of shapes, compared or ranked by a known score.

    Args:
      kind: 'caption', 'degraded' or 'style'.
      resolution: pixels of a side.
      objects: the least and the largest number of objects.
      sizes: of objects; below 32 x 32 the kind of a small one cannot be told.
      examples: of a comparison; rankings from three on.
      temperature: what scores are divided by when comparisons come out.
      theta: above 1 for pairs that may end in a tie (losses/comparisons.py).
      taste: of kind 'style', for light backgrounds and for large objects; (1, 1) unless told.
      captions: whether batches carry them as `tokens`; of kind 'caption' they must.
    """
    law = dict(resolution=resolution, objects=objects, sizes=tuple(sizes), textures=("plain",))
    # As long as captions of the source 'shapes', so that what is learnt here judges what was learnt there.
    length = shapes(**law).tokenizer.length
    base = shapes(**law, relations=0.0, loose=0.0, text_length=length)
    if taste is not None and (kind != "style" or len(taste) != 2):
        raise ValueError(f"taste={taste} with kind='{kind}': expected two numbers, and kind='style'.")
    if kind == "caption" and (not captions or examples > 2 * objects[0] + 1):
        raise ValueError(
            f"kind='caption' with captions={captions}, examples={examples} and objects={tuple(objects)}: it needs captions, "
            "and each example has a number of mistakes of its own, of which an object allows two."
        )
    drawer = _Drawer(base, examples, tuple(taste or (1.0, 1.0)))
    draw = choose(
        "kind of comparison", kind, dict(caption=drawer.caption, degraded=drawer.degraded, style=drawer.style)
    )
    spec, tokenizer = dataclasses.replace(base.spec, compared=examples), base.tokenizer
    if not captions:
        plain, tokenizer = draw, None
        draw = functools.partial(_without_captions, plain)
        spec = DataSpec(spec.shape, std=spec.std, compared=examples)
    source = JudgedSource(draw, drawer.columns[kind], Judgement(temperature, theta), spec, tokenizer, LEVELS)
    # As wide as what is shown: degraded pictures are not those of the renderer.
    seen = draw(draws.row_uniforms(0, draws.MEASURE, 0, 0, 128, source.columns), "train")[0]
    return dataclasses.replace(source, spec=dataclasses.replace(spec, std=float(seen.std())))


def _without_captions(draw, uniforms, split):
    examples, scores, _ = draw(uniforms, split)
    return examples, scores, {}
