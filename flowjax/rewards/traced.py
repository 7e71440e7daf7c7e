"""A function of one's own in JAX, by name: compiled with what asks for it, and followed by methods that read its gradient."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flowjax.rewards.functions import prepare_function
from flowjax.rewards.reward import Reward


def traced(function: str, options: dict | ConfigDict | None = None, differentiable: bool = True) -> Reward:
    """A function in JAX.

    Args:
      function: 'package.module:callable' of (samples, cond), or a class whose instances are: one number for each sample, out
        of jax.numpy alone.
      options: keyword arguments of the function, or of the class.
      differentiable: whether its gradient by the samples means something. That of a count or of a threshold does not.
    """
    options = options.to_dict() if isinstance(options, ConfigDict) else dict(options or {})
    ask = prepare_function(function, options)

    def value(params, samples, cond):
        try:
            found = jnp.asarray(ask(samples, cond))
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
            raise ValueError(
                f"The reward '{function}' needs the numbers themselves: it calls NumPy, or decides by a value. Write it with "
                "jax.numpy alone, or have it called on the host: name='python'."
            ) from error
        if found.shape != samples.shape[:1] or not jnp.issubdtype(found.dtype, jnp.number):
            raise ValueError(
                f"The reward '{function}' gave {found.dtype} of shape {found.shape} for {len(samples)} samples; expected one "
                f"number for each, shape ({len(samples)},)."
            )
        return found.astype(jnp.float32)

    return Reward(value, differentiable=differentiable)
