"""One way to look a name up in a table, one way to build what it names, and one error message when either fails.

A component of a config is a spec: a mapping with a `name` and the keyword arguments of the factory of that name, as in
`dict(name='vp', beta_max=15.0)`. The factory's signature is the only list of its options: nothing is declared twice.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

T = TypeVar("T")
Spec = Mapping[str, Any] | ConfigDict


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(item) for item in known], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Returns table[name]; an unknown name raises a ValueError that lists and suggests the known ones.

    Args:
      kind: what the table holds, in words ("path", "sampler"), for the message.
      name: the name asked for.
      table: the known names.
    """
    if name not in table:
        raise ValueError(f"Unknown {kind} '{name}'. Known: {', '.join(sorted(table))}.{suggestion(name, table)}")
    return table[name]


def build(kind: str, spec: Any, table: Mapping[str, Callable[..., T]], **given: Any) -> T:
    """Calls the factory that a spec names with the spec's other entries, after checking them against its signature.

    Args:
      kind: what is built, in words, for the messages.
      spec: `name` and keyword options, a mapping; what a user wrote may be anything.
      table: name -> factory.
      **given: arguments that the caller supplies (a data shape, another component); a spec may not set them. One that
        the factory does not take is left out, so a caller offers everything it has.
    """
    if not isinstance(spec, (Mapping, ConfigDict)):
        raise ValueError(
            f"The {kind} is {spec!r}; expected a spec, dict(name=..., options). Known: {', '.join(sorted(table))}."
        )
    options = dict(spec)
    if "name" not in options:
        raise ValueError(f"The {kind} spec {options} has no 'name'. Known: {', '.join(sorted(table))}.")
    name = options.pop("name")
    factory = choose(kind, name, table)
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = [
        key
        for key, p in parameters.items()
        if key not in given and p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
    for key, value in options.items():
        if key not in known and not (takes_any and key not in given):
            listed = ", ".join(known) or "none"
            raise ValueError(
                f"The {kind} '{name}' has no option '{key}'. Its options: {listed}.{suggestion(key, known)}"
            )
        if key in parameters:
            check_type(f"{kind} '{name}' option '{key}'", value, parameters[key].annotation)
    missing = [key for key in known if parameters[key].default is inspect.Parameter.empty and key not in options]
    if missing:
        raise ValueError(f"The {kind} '{name}' needs the option(s) {', '.join(missing)} in its spec.")
    given = {key: value for key, value in given.items() if takes_any or key in parameters}
    return factory(**given, **options)


def check_type(what: str, value: Any, annotation: Any) -> None:
    """Raises a TypeError when a plain value (number, text, flag, sequence) does not fit a plain annotation."""
    plain = {
        int: (int,),
        float: (int, float),
        str: (str,),
        bool: (bool,),
        tuple: (tuple, list),
        type(None): (type(None),),
    }
    origin = typing.get_origin(annotation)
    members = typing.get_args(annotation) if origin in (typing.Union, types.UnionType) else (annotation,)
    members = tuple(typing.get_origin(member) or member for member in members)
    if not all(member in plain for member in members):
        return
    allowed = tuple(kind for member in members for kind in plain[member])
    is_flag_for_number = isinstance(value, bool) and bool not in members
    if is_flag_for_number or not isinstance(value, allowed):
        wanted = " or ".join("None" if member is type(None) else member.__name__ for member in members)
        raise TypeError(f"The {what} is {value!r} ({type(value).__name__}); expected {wanted}.")
