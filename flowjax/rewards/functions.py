"""Functions of the host by name: 'package.module:callable'."""

import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from flowjax.choices import suggestion
from flowjax.rewards.calls import Score


def find_function(function: str, options: Mapping[str, Any]) -> Any:
    """What a name means, after checking that it takes the options; nothing is called.

    Args:
      function: 'package.module:callable', on the import path.
      options: keyword arguments.
    """
    module_name, colon, name = function.partition(":")
    if not (colon and module_name and name):
        raise ValueError(f"The reward function is '{function}'; expected 'package.module:callable'.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"The reward function '{function}' cannot be imported: {error}. Its module must be on the import path: the folder "
            "that the program is started in, or PYTHONPATH."
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"The module {module_name} has no '{name}'.{suggestion(name, vars(module))}")
    found = getattr(module, name)
    if not callable(found):
        raise ValueError(
            f"'{function}' is {type(found).__name__}; expected a function of (samples, cond), or a class of such."
        )
    try:
        signature = inspect.signature(found)
    except ValueError:  # a function of C that does not say what it takes
        return found
    given = () if inspect.isclass(found) else ("samples", "cond")
    try:
        signature.bind(*given, **options)
    except TypeError as error:
        listed = ", ".join([*given, *(f"{key}={value!r}" for key, value in options.items())])
        raise ValueError(
            f"'{function}' does not take ({listed}): {error}. Its signature is {signature}; a function takes samples, "
            "conditions and the options, a class the options alone."
        ) from error
    return found


def prepare_function(function: str, options: Mapping[str, Any]) -> Score:
    """(samples, cond) -> scores: the function with its options, or an instance of the class made with them."""
    found = find_function(function, options)
    return found(**options) if inspect.isclass(found) else functools.partial(found, **options)
