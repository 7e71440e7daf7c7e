r"""Scores from comparisons: what people prefer is seen in pairs, with or without ties, or in rankings; a score is learnt.

With scores r of two examples and d = r_first - r_second (Bradley & Terry 1952; with ties Rao & Kupper 1967):

    P(first > second) = sigmoid(d - log theta),    P(second > first) = sigmoid(-d - log theta),
    P(tie) = (theta^2 - 1) P(first > second) P(second > first),                                                    (1)

which add up to one; theta = 1 has no ties. A ranking of k examples, the best first, is drawn from the top: every place is
taken by one of those left, in proportion to e^r (Plackett 1975, Luce 1959):

    log P = sum_{i<k} [ r_i - log sum_{j>=i} e^{r_j} ].                                                            (2)

For two examples (2) is (1) without ties. A margin m asks for d > m where a comparison was clear. All depend on differences
of scores alone, so scores are known up to a constant for each group of examples that were compared.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FIRST, TIE, SECOND = 1, 0, -1  # outcomes of a comparison


def pair_loss(
    better: Float[Array, " b"], worse: Float[Array, " b"], margin: Float[Array, " b"] | float = 0.0
) -> Float[Array, " b"]:
    """-log sigmoid(better - worse - margin).

    Args:
      better: scores of the examples that won.
      worse: of those that lost.
      margin: by how much the score should differ beyond what is likely anyway; 0 for the likelihood itself.
    """
    return -jax.nn.log_sigmoid(better - worse - margin)


def outcome_log_probabilities(
    first: Float[Array, " b"], second: Float[Array, " b"], theta: float = 5.0
) -> Float[Array, "b 3"]:
    """log P of equation (1): of the first winning, of a tie, of the second winning.

    Args:
      first: scores.
      second: scores of their opponents.
      theta: above 1; how readily a comparison ends in a tie. At d = 0 its probability is (theta - 1) / (theta + 1).
    """
    if theta <= 1:
        raise ValueError(f"theta is {theta}; comparisons with ties need a number above 1. Without ties use pair_loss.")
    ahead = jax.nn.log_sigmoid(first - second - math.log(theta))
    behind = jax.nn.log_sigmoid(second - first - math.log(theta))
    return jnp.stack([ahead, math.log(theta**2 - 1.0) + ahead + behind, behind], axis=1)


def tie_loss(
    first: Float[Array, " b"], second: Float[Array, " b"], outcome: Int[Array, " b"], theta: float = 5.0
) -> Float[Array, " b"]:
    """-log P of the outcome that was observed.

    Args:
      first: scores.
      second: scores of their opponents.
      outcome: FIRST, TIE or SECOND.
      theta: of equation (1).
    """
    return -jnp.take_along_axis(outcome_log_probabilities(first, second, theta), (1 - outcome)[:, None], axis=1)[:, 0]


def ranking_loss(scores: Float[Array, "b k"], present: Bool[Array, "b k"] | None = None) -> Float[Array, " b"]:
    """-log P of equation (2).

    Args:
      scores: of the examples of each ranking, the best first.
      present: False behind the end of a ranking of fewer than k; all by default.
    """
    if present is None:
        present = jnp.ones(scores.shape, bool)
    # log sum_{j>=i}: a cumulative sum from the end, in logarithms.
    left = jax.lax.cumlogsumexp(jnp.where(present, scores, -jnp.inf), axis=1, reverse=True)
    return jnp.sum(jnp.where(present, jnp.where(present, left, 0.0) - scores, 0.0), axis=1)
