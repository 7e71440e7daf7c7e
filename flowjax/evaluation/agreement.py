r"""Do images show what their captions say? For real captioned data, where no parser can read the image.

A probe is trained on the real training split to predict a caption's vector from an image's features. An image agrees with
its caption when, among k captions, its own and k - 1 others drawn from the held-out ones, its own is nearest:

    W = argmin sum_i |W f_i - v_i|^2 + ridge n |W|^2            (f standardised, v unit vectors less their mean)
    right(image, c) = cos(W f, v(c)) > cos(W f, v(c')) for each of the k - 1 others c'; a tie counts as not right.

It is a closed form, so nothing is drawn and nothing stops early; RECIPE is all there is to it. The probe is far from
perfect: its accuracy on held-out **real** images is printed beside every figure, together with chance, 1 / k. A figure
well above the real one means images that exaggerate what the probe looks for.

Caption vectors: encoded captions (`text`, `text_mask`) are averaged over their tokens. Of token ids (`tokens`) the vector
has an entry for each id of the training captions, its count times log(captions / captions that have it), and length one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from flowjax.data.sources import Source
from flowjax.evaluation.judging import Conditions, FeatureSpec, check_finite, features_of, quantised
from flowjax.evaluation.resampling import bootstrap_mean

RECIPE = {"version": 1, "ridge": 0.1, "most_training_images": 10_000}


def _bag(tokens: np.ndarray, size: int) -> Float[np.ndarray, "n size"]:
    """How often each token id is in each caption; 0, the padding, is not counted."""
    bag = np.zeros((len(tokens), size), np.float32)
    np.add.at(bag, (np.arange(len(tokens))[:, None], tokens), 1)
    bag[:, 0] = 0
    return bag


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class CaptionVectors:
    """Caption -> vector, fitted to the training captions; and what makes two captions the same."""

    def __init__(self, train: Conditions, vocabulary: int):
        # A source that encodes captions on the way keeps its own ids beside the vectors.
        self._vocabulary, self.encoded = vocabulary, "text" in train
        if not self.encoded:
            present = _bag(np.asarray(train["tokens"]), vocabulary) > 0
            self._known = np.flatnonzero(present.any(axis=0))
            self._weights = np.log(len(present) / present[:, self._known].sum(axis=0))
        self._mean: np.ndarray | float = 0.0
        self._mean = self(train).mean(axis=0)

    def __call__(self, conditions: Conditions) -> Float[np.ndarray, "n c"]:
        """Unit vectors less the mean of the training captions."""
        if self.encoded:
            mask = np.asarray(conditions["text_mask"], np.float32)[..., None]
            rows = (np.asarray(conditions["text"], np.float32) * mask).sum(1) / np.maximum(mask.sum(1), 1)
        else:
            rows = _bag(np.asarray(conditions["tokens"]), self._vocabulary)[:, self._known] * self._weights
        return _unit(rows) - self._mean

    def names(self, conditions: Conditions) -> list[bytes]:
        """One text of bytes for each caption, equal for equal captions."""
        rows = np.ascontiguousarray(conditions["tokens" if "tokens" in conditions else "text"])
        return [row.tobytes() for row in rows]


class CaptionAgreement:
    """See the module; one instance trains its probe when it is made."""

    def __init__(self, source: Source, seed: int, choices: int, features: FeatureSpec):
        if not source.spec.text_length:
            raise ValueError("The evaluator 'caption_agreement' needs data with captions, and these have none.")
        self._features, self._levels, self._seed, self._choices = (
            features_of(features, source),
            source.levels,
            seed,
            choices,
        )
        train, test = source.reference("train"), source.reference("test")
        if len(train["data"]) > RECIPE["most_training_images"]:
            train = source.reference("train", RECIPE["most_training_images"], 0)
        self._vectors = CaptionVectors(train, source.spec.vocabulary)
        images = self._features.real(quantised(train["data"], self._levels)).astype(np.float64)
        self._centre, self._scale = images.mean(axis=0), images.std(axis=0) + 1e-6
        images = (images - self._centre) / self._scale
        inner = images.T @ images / len(images) + RECIPE["ridge"] * np.eye(images.shape[1])
        self._probe = np.linalg.solve(inner, images.T @ self._vectors(train) / len(images))
        names = self._vectors.names(test)
        first = {name: place for place, name in reversed(list(enumerate(names)))}
        self._held_out, places = list(first), np.fromiter(first.values(), int)
        if len(places) < choices:
            raise ValueError(
                f"caption_agreement asks for {choices} captions to choose among, but the held-out split has {len(places)} "
                "different ones. Lower `choices`."
            )
        self._candidates = _unit(self._vectors({name: value[places] for name, value in test.items()}))
        right = self._right(self._features.real(quantised(test["data"], self._levels)), test)
        self._real = float(right.mean())
        self.description: Mapping[str, Any] = {
            "features": self._features.receipt,
            "choices": choices,
            "probe": {**RECIPE, "held_out_images": len(right)},
        }

    def _right(self, embedded: np.ndarray, conditions: Conditions) -> Float[np.ndarray, " n"]:
        """For each image whether its own caption is the nearest of `choices`."""
        predicted = _unit((embedded - self._centre) / self._scale @ self._probe)
        own = np.sum(predicted * _unit(self._vectors(conditions)), axis=1)
        others = predicted @ self._candidates.T
        place_of = {name: place for place, name in enumerate(self._held_out)}
        right = np.zeros(len(own))
        for row, name in enumerate(self._vectors.names(conditions)):
            generator = np.random.default_rng((self._seed, row))
            drawn = generator.choice(len(self._held_out), self._choices, replace=False)
            drawn = drawn[drawn != place_of.get(name, -1)][: self._choices - 1]
            right[row] = own[row] > others[row, drawn].max()
        return right

    def __call__(self, samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        """`caption_agreement` with its interval, `_real` of held-out real images, and `_chance`."""
        check_finite(samples)
        needed = ("text", "text_mask") if self._vectors.encoded else ("tokens",)
        missing = [name for name in needed if name not in conditions]
        if missing:
            raise ValueError(f"caption_agreement needs the captions that were asked for; `{missing[0]}` is not there.")
        if len(conditions[needed[0]]) != len(samples):
            raise ValueError(
                f"caption_agreement got {len(samples)} samples and {len(conditions[needed[0]])} captions; give one for each."
            )
        right = self._right(self._features.embed(quantised(samples, self._levels)), conditions)
        low, high = bootstrap_mean(right, self._seed)
        return {
            "caption_agreement": float(right.mean()),
            "caption_agreement_low": low,
            "caption_agreement_high": high,
            "caption_agreement_real": self._real,
            "caption_agreement_chance": 1 / self._choices,
        }


def caption_agreement(
    source: Source, seed: int = 0, choices: int = 10, features: FeatureSpec = "efficientnet_lite0"
) -> CaptionAgreement:
    """Text-image agreement: how often an image is nearest to its own caption among `choices`, by a trained probe.

    Args:
      source: captioned data with a training and a held-out split.
      seed: which captions stand beside an image's own.
      choices: how many captions there are to choose among.
      features: what the probe reads.
    """
    return CaptionAgreement(source, seed, choices, features)
