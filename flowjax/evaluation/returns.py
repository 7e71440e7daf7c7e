"""What a policy is worth: the mean return of episodes, beside that of who taught it and, where it is known, the best return."""

import numpy as np

from flowjax.data.sources import Source
from flowjax.evaluation import resampling
from flowjax.evaluation.judging import Conditions, Evaluator, check_finite


def episode_return(source: Source, seed: int = 0) -> Evaluator:
    """`return`, with its interval; `return_expert` of held-out demonstrations; `return_best`, which none can do better than.

    Where the best is known, `shortfall` is how much less the policy gets, as a share of the best's absolute value.

    Args:
      source: demonstrations, which know their environment.
      seed: of the interval.
    """
    environment = getattr(source, "environment", None)
    if environment is None:
        raise ValueError(
            "The evaluator 'episode_return' needs data that know their environment. Use data 'demonstrations', or drop it."
        )
    best = environment.best_return

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        check_finite(samples)
        if samples.shape[1:] != (1,):
            raise ValueError(
                f"The evaluator 'episode_return' reads the returns of episodes [n, 1], and the sampler gave samples of shape "
                f"{samples.shape[1:]}. Measure a sampler dict(name='episodes') of the method 'reinflow'."
            )
        returns = samples[:, 0].astype(np.float64)
        low, high = resampling.bootstrap_mean(returns, seed)
        values = {"return": float(returns.mean()), "return_low": low, "return_high": high}
        values["return_expert"] = float(np.mean(source.returns))
        if best is None:
            return values
        return {**values, "return_best": best, "shortfall": (best - values["return"]) / abs(best)}

    return evaluate
