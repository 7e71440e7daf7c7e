"""Returns of episodes: their mean, beside those of the demonstrations and of the best policy."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.data.sources import ArraySource
from flowjax.evaluation import EVALUATORS, HIGHER_IS_BETTER

ARRAYS = {"data": np.zeros((2, 1), np.float32)}


@dataclasses.dataclass(frozen=True)
class World:
    best_return: float | None


@dataclasses.dataclass(frozen=True)
class Played(ArraySource):
    environment: Any = None
    returns: Any = ()


def evaluator(best=-8.0):
    source = Played(ARRAYS, ARRAYS, DataSpec((1,)), environment=World(best), returns=np.array([-30.0, -20.0]))
    return build("evaluator", dict(name="episode_return"), EVALUATORS, source=source, seed=0)


RETURNS = np.random.default_rng(0).normal(-10.0, 1.0, (400, 1)).astype(np.float32)


def test_a_policy_is_held_against_its_teacher_and_the_best():
    found = evaluator()(RETURNS, {})
    mean = RETURNS.astype(np.float64).mean()
    assert found["return"] == pytest.approx(mean) and found["return_expert"] == -25 and found["return_best"] == -8
    assert found["shortfall"] == pytest.approx((-8 - mean) / 8)
    assert found["return_low"] < -10 < found["return_high"] < found["return_low"] + 0.4  # four deviations of the mean
    assert {"return", "return_best", "return_expert"} <= HIGHER_IS_BETTER
    assert set(evaluator(best=None)(RETURNS, {})) == {"return", "return_low", "return_high", "return_expert"}


def test_what_is_no_return_is_refused():
    with pytest.raises(ValueError, match=r"samples of shape \(2,\). Measure a sampler dict\(name='episodes'\)"):
        evaluator()(np.zeros((4, 2), np.float32), {})
    with pytest.raises(ValueError, match="needs data that know their environment"):
        build(
            "evaluator",
            dict(name="episode_return"),
            EVALUATORS,
            source=ArraySource(ARRAYS, ARRAYS, DataSpec((1,))),
            seed=0,
        )
