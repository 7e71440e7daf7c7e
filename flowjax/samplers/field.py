"""What a sampler sees of a network: a prediction that can be asked for as velocity, data, noise or score.

A sampler never knows what the network was trained to output. It asks a `Field` for what its formula needs and the one
conversion table of `flowjax.paths.predictions` answers. At the ends of a path some questions have no answer: on the
linear path a data prediction determines no velocity at t = 1 (it would divide by sigma = 0), and a noise prediction
determines nothing at t = 0 (it would divide by alpha = 0). `determined` says so before anything is computed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import batch_times
from flowjax.paths.path import GaussianPath
from flowjax.paths.predictions import convert, determinant, prediction_row

BEFORE_END = 1e-3


def determined(path: GaussianPath, prediction: str, t: float) -> bool:
    """Whether a prediction at time t fixes the velocity: its determinant, D / c, is not zero there."""
    if prediction == "velocity":
        return True  # nothing to convert: the network's own output
    with jax.ensure_compile_time_eval():
        time = jnp.asarray(t, jnp.float32)
        divisor = prediction_row(path, prediction, time)[2]
        return bool(jnp.abs(determinant(path, prediction, time)) > 1e-6 * jnp.abs(divisor))


def last_time(path: GaussianPath, prediction: str) -> float:
    """The end of a path, or shortly before it where the prediction fixes no velocity at the end."""
    return path.end if determined(path, prediction, path.end) else path.end - BEFORE_END


@dataclasses.dataclass(frozen=True)
class Field:
    """A prediction on a path, asked for in any form.

    Attributes:
      predict: (x, t[b]) -> the prediction, an array like x; (x, t[b], s[b]) for a network of two times that is told
        where the step goes.
      prediction: what `predict` returns, one of flowjax.paths.predictions.PREDICTIONS.
      path: the path on which x lies.
      network: what the network itself outputs, where guidance has turned that into another kind: it decides what is
        determined at the ends of the path.
    """

    predict: Callable[..., Any]
    prediction: str
    path: GaussianPath
    network: str | None = None

    def evaluate(
        self,
        x: Float[Array, "b ..."],
        t: Float[Array, "..."] | float,
        s: Float[Array, "..."] | float | None = None,
    ) -> Float[Array, "b ..."]:
        """The prediction itself, at one time or at one time for each example; of a jump to s where one is given."""
        return self.predict(x, batch_times(t, x), *(() if s is None else (batch_times(s, x),)))

    def convert(
        self, value: Float[Array, "b ..."], x: Float[Array, "b ..."], t, destination: str
    ) -> Float[Array, "b ..."]:
        """Converts an evaluated prediction to another kind."""
        return convert(self.path, self.prediction, destination, value, x, batch_times(t, x))

    def velocity(self, x: Float[Array, "b ..."], t: Float[Array, "..."] | float) -> Float[Array, "b ..."]:
        """E[dx/dt | x_t]: the right-hand side of the probability-flow ODE."""
        return self.convert(self.evaluate(x, t), x, t, "velocity")

    def data(self, x: Float[Array, "b ..."], t: Float[Array, "..."] | float) -> Float[Array, "b ..."]:
        """E[x1 | x_t]: the denoised estimate."""
        return self.convert(self.evaluate(x, t), x, t, "data")

    def noise(self, x: Float[Array, "b ..."], t: Float[Array, "..."] | float) -> Float[Array, "b ..."]:
        """E[x0 | x_t]."""
        return self.convert(self.evaluate(x, t), x, t, "noise")

    def score(self, x: Float[Array, "b ..."], t: Float[Array, "..."] | float) -> Float[Array, "b ..."]:
        """grad log p_t(x)."""
        return self.convert(self.evaluate(x, t), x, t, "score")

    def pair(
        self, x: Float[Array, "b ..."], t: Float[Array, "..."] | float
    ) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
        """(E[x1 | x_t], E[x0 | x_t]) from a single evaluation."""
        value = self.evaluate(x, t)
        return self.convert(value, x, t, "data"), self.convert(value, x, t, "noise")

    def velocity_and_score(
        self, x: Float[Array, "b ..."], t: Float[Array, "..."] | float
    ) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
        """(velocity, score) from a single evaluation."""
        value = self.evaluate(x, t)
        return self.convert(value, x, t, "velocity"), self.convert(value, x, t, "score")


@dataclasses.dataclass(frozen=True)
class MemoryField:
    """A field whose prediction depends on earlier evaluations of the same sample, as guidance with momentum does.

    The scan loop carries the memory from one evaluation to the next; solvers that reject steps (diffrax) cannot use it.

    Attributes:
      predict: (x, t[b], memory) -> (prediction, memory); (x, t[b], memory, s[b]) for a network of two times.
      prediction: what `predict` returns.
      path: the path on which x lies.
      init: x -> the memory before the first evaluation.
      network: as of Field.
    """

    predict: Callable[..., Any]
    prediction: str
    path: GaussianPath
    init: Callable[[Any], Any]
    network: str | None = None
