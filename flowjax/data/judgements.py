r"""Comparisons whose scores are known: endless groups of examples, and how they are judged.

Every example has a known score r. Of two, the outcome is drawn from equation (1) of losses/comparisons.py at scores r /
temperature, with ties where theta is above 1; of more, a ranking is drawn from equation (2), by sorting r / temperature plus
Gumbel noise. Nobody who sees two examples can say which of them was found better more often than in

    E max(P(first > second), P(second > first)) / E (P(first > second) + P(second > first))                        (1)

of all comparisons that were no ties: this is what a learnt score is to be held against. In a ranking any two examples stand
in their order with the probability of a pair, so the same holds of all its pairs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, Int

from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.fingerprints import tree_hash
from flowjax.data.sources import check_split, endless

Examples = tuple[np.ndarray, Float[np.ndarray, "n k"], Mapping[str, np.ndarray]]  # [n, k, ...], scores, conditions


@dataclasses.dataclass(frozen=True)
class Judgement:
    """How comparisons come out.

    Attributes:
      temperature: what scores are divided by: the larger, the more often the worse one wins.
      theta: 1, or more for comparisons of two that may end in a tie.
    """

    temperature: float = 1.0
    theta: float = 1.0

    def __post_init__(self):
        if self.temperature <= 0 or self.theta < 1:
            raise ValueError(
                f"temperature={self.temperature} and theta={self.theta}: expected a positive number, and at least 1."
            )

    def check(self, examples: int) -> None:
        """Refuses comparisons of fewer than two examples, and ties among more."""
        if examples < 2 or (examples > 2 and self.theta > 1):
            raise ValueError(
                f"examples={examples} with theta={self.theta}: a comparison is of two or more examples, and only two tie. "
                "Use examples=2, or theta=1."
            )

    def order(
        self, scores: Float[np.ndarray, "n k"], uniforms: Float[np.ndarray, "n k"]
    ) -> tuple[Int[np.ndarray, "n k"], Int[np.ndarray, " n"]]:
        """In which order the examples of a comparison stand in a batch, and its outcome.

        Args:
          scores: the known ones.
          uniforms: one for each example; of two the first one decides.
        """
        scaled = scores / self.temperature
        if scores.shape[1] > 2:
            order = np.argsort(-(scaled - np.log(-np.log(np.maximum(uniforms, 1e-300)))), axis=1, kind="stable")
            return order, np.ones(len(scores), np.int32)
        first, second = self._chances(scaled[:, 0] - scaled[:, 1])
        decided = uniforms[:, 0]
        outcome = np.where(decided < first, 1, np.where(decided >= 1 - second, -1, 0)).astype(np.int32)
        return np.broadcast_to(np.arange(2), scores.shape), outcome

    def best_accuracy(self, scores: Float[np.ndarray, "n k"]) -> float:
        """Equation (1), of all pairs of these examples."""
        one, other = np.triu_indices(scores.shape[1], 1)
        first, second = self._chances((scores[:, one] - scores[:, other]) / self.temperature)
        return float(np.maximum(first, second).sum() / (first + second).sum())

    def _chances(self, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(first > second) and P(second > first) by the difference of their scaled scores."""
        chance = lambda d: np.exp(-np.logaddexp(0.0, np.log(self.theta) - d))
        return chance(ahead), chance(-ahead)


@dataclasses.dataclass(frozen=True)
class JudgedSource:
    """Fresh comparisons for ever.

    Attributes:
      draw: (uniforms [n, columns], split) -> examples [n, k, ...], their scores, and what they share; row by row.
      columns: uniforms that a comparison takes.
      judgement: how it comes out.
      spec: the data's spec; its `compared` is k.
      tokenizer: captions to ids, where there are some.
      levels: grey levels of pictures.
    """

    draw: Callable[[Float[np.ndarray, "n c"], str], Examples]
    columns: int
    judgement: Judgement
    spec: DataSpec
    tokenizer: Any = None
    levels: int | None = None
    size: None = None
    oracle: None = None

    def __post_init__(self):
        self.judgement.check(self.spec.compared)

    def _rows(self, seed: int, stream: int, step: int, start: int, stop: int, split: str):
        """A batch, and the known scores in its order."""
        k = self.spec.compared
        uniforms = draws.row_uniforms(seed, stream, step, start, stop, self.columns + k)
        examples, scores, conditions = self.draw(uniforms[:, : self.columns], split)
        order, outcome = self.judgement.order(scores, uniforms[:, self.columns :])
        rows = np.arange(len(order))[:, None]
        examples, scores = np.asarray(examples[rows, order], np.float32), scores[rows, order]
        batch = {"data": examples[:, 0], "others": examples[:, 1:], "outcome": outcome, **conditions}
        if k > 2:
            batch["present"] = np.ones((len(order), k - 1), bool)
        return batch, scores

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: fresh comparisons for the rows start..stop of step k."""
        return endless(lambda step: self._rows(seed, draws.TRAIN, step, start, stop, "train")[0])

    def judged(self, split: str = "test", count: int | None = None, seed: int = 0):
        """What `reference` gives, and the known scores [n, k] of its examples, `data` first."""
        check_split(split)
        stream = draws.REFERENCE_TRAIN if split == "train" else draws.REFERENCE_TEST
        return self._rows(seed, stream, 0, 0, 10_000 if count is None else count, split)

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """`count` fresh comparisons (10,000 unless told): others for every split and seed, never one of training."""
        return self.judged(split, count, seed)[0]

    def best_accuracy(self, split: str = "test", count: int | None = None, seed: int = 0) -> float:
        """How often the better example can be told at best, in these very comparisons: equation (1)."""
        return self.judgement.best_accuracy(self.judged(split, count, seed)[1])

    def fingerprint(self) -> str:
        """A hash of what the law makes of a fixed set of uniforms."""
        batch, scores = self._rows(0, draws.MEASURE, 0, 0, 64, "train")
        return tree_hash({**batch, "scores": scores})


def distinct_levels(
    uniforms: Float[np.ndarray, "n k"], most: Int[np.ndarray, " n"], anchored: bool = True
) -> Int[np.ndarray, "n k"]:
    """k different levels out of 0 ... most for each row, in random order.

    Args:
      uniforms: k for each row.
      most: the largest level of a row, at least k - 1.
      anchored: one of them is always 0.
    """
    n, k = uniforms.shape
    chosen = np.zeros((n, k), np.int32)
    free = np.broadcast_to(np.arange(most.max() + 1), (n, most.max() + 1)) <= most[:, None]
    rows = np.arange(n)
    if anchored:
        free[:, 0] = False
    for place in range(1 if anchored else 0, k):
        rank = (uniforms[:, place] * free.sum(1)).astype(int) + 1
        chosen[:, place] = (np.cumsum(free, axis=1) == rank[:, None]).argmax(1)
        free[rows, chosen[:, place]] = False
    if anchored:  # the first uniform is left: it says where the 0 stands
        turn = (np.arange(k) + (uniforms[:, 0] * k).astype(int)[:, None]) % k
        chosen = np.take_along_axis(chosen, turn, axis=1)
    return chosen
