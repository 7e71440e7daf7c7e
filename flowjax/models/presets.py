"""Published sizes: a factory with some of its options fixed and the defaults of others changed."""

import inspect
from collections.abc import Callable

from flowjax.models.network import Network


def preset(factory: Callable[..., Network], *, defaults: dict | None = None, **fixed) -> Callable[..., Network]:
    """A factory whose signature lists what is still free, as choices.build reads it.

    Args:
      factory: a network factory.
      defaults: option -> new default; it can still be changed.
      **fixed: options that make the size; they are no options any more.
    """
    defaults = defaults or {}
    parameters = inspect.signature(factory).parameters
    unknown = [name for name in (*defaults, *fixed) if name not in parameters]
    if unknown:
        raise ValueError(
            f"{factory.__name__} has no option {', '.join(unknown)}; its options: {', '.join(parameters)}."
        )

    def sized(*args, **options) -> Network:
        given = inspect.signature(sized).bind(*args, **options)
        return factory(**{**defaults, **given.arguments, **fixed})

    sized.__signature__ = inspect.Signature(
        [
            parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in parameters.items()
            if name not in fixed
        ]
    )
    sized.__name__ = factory.__name__
    described = ", ".join(f"{name}={value!r}" for name, value in (fixed | defaults).items())
    sized.__doc__ = f"`{factory.__name__}` with {described}; see there for the options."
    return sized
