"""Counts the floating-point operations of a function from its jaxpr: of matrix products and convolutions, loops in full.

The compiler's own count (cost_analysis) takes the body of a loop once, and so one step of a sampler for all of them. Here a
scan counts as often as it runs. What is left out is little: elementwise work, reductions, the solvers of linear algebra.

    product        2 (elements of the result) (elements summed over for each)
    convolution    2 (elements of the result) (pixels of the kernel) (channels read for each) / (dilation of the input)

Zeros at the borders of an image count, those between the pixels of a dilated one do not; what jax.checkpoint computes again,
counts again. Of the branches of a condition the dearest counts, and the body of a loop without a known length once.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
from jax.extend import core

from flowjax.contract import Batch
from flowjax.training.speed import peak_flops


class Meter:
    """Adds up the operations of what is sent to the devices, where their peak is known: there is no counting elsewhere."""

    def __init__(self, peak: float = 0.0):
        """Args:
        peak: operations a second of one device; 0 for what is listed.
        """
        peak = peak or peak_flops(jax.devices()[0].device_kind)
        self._peak = None if peak is None else peak * jax.device_count()
        self._counted: dict[Hashable, float] = {}
        self._sum = 0.0

    def sent(self, name: Hashable, times: int, batch: Batch, count: Callable[[], float]) -> None:
        """Takes note of a program.

        Args:
          name: of it.
          times: how often it was sent.
          batch: what it works on, of whose shapes alone its operations depend.
          count: gives them, when they are needed: once for a name and shapes.
        """
        if self._peak is None:
            return
        key = (name, *((part, array.shape) for part, array in batch.items()))
        if key not in self._counted:
            self._counted[key] = count()
        self._sum += times * self._counted[key]

    def utilisation(self, seconds: float) -> float | None:
        """The share of what the devices could have done in a time, since it was asked last; None where nobody knows."""
        done, self._sum = self._sum, 0.0
        return None if self._peak is None else done / (self._peak * max(seconds, 1e-9))


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """How many a call takes.

    Args:
      function: of arrays.
      *arguments: arrays, or their shapes; nothing is computed.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name in ("dot_general", "ragged_dot_general"):
        left = equation.invars[0].aval
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2.0 * _size(equation) * math.prod(left.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval, parameters["dimension_numbers"].rhs_spec
        read = math.prod(kernel.shape[axis] for axis in numbers[1:]) / math.prod(parameters["lhs_dilation"])
        return 2.0 * _size(equation) * read
    inner = [_count(jaxpr) for jaxpr in _inside(parameters)]
    if name == "scan":
        return parameters["length"] * sum(inner)
    return max(inner, default=0.0) if name == "cond" else sum(inner)


def _size(equation: core.JaxprEqn) -> int:
    return math.prod(equation.outvars[0].aval.shape)


def _inside(parameters: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs that an equation calls."""
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
