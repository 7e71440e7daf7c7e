"""Hashes that say what something was made from: parameters, arrays, options, sources. Sixteen hexadecimal digits each.

They are equal in every process, on every machine, and change when a single value does.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

DIGITS = 16


def plain_hash(**facts: Any) -> str:
    """A hash of plain values (numbers, text, lists, mappings)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()[:DIGITS]


def tree_hash(tree: PyTree) -> str:
    """A hash of a tree of arrays: of every path with its type, shape and bytes, in the order of the paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    total = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        add_array(total, path, np.asarray(leaf))
    return total.hexdigest()[:DIGITS]


def add_array(total: Any, name: str, value: np.ndarray) -> None:
    """Feeds an array to a running hash, with its name, type and shape."""
    total.update(f"{name} {value.dtype.str} {value.shape};".encode())
    # Piece by piece: an array on disk is never in memory as a whole.
    flat = value.reshape(-1) if value.flags.c_contiguous else np.ascontiguousarray(value).reshape(-1)
    for first in range(0, flat.size, 1 << 22):
        total.update(np.ascontiguousarray(flat[first : first + (1 << 22)]).tobytes())


def source_fingerprint(source: Any) -> str:
    """A hash of what a source's examples are.

    A source with a method `fingerprint` says so itself. Of any other, a finite one is hashed as a whole, and of an endless
    one the first examples of two seeds.
    """
    if hasattr(source, "fingerprint"):
        return source.fingerprint()
    if source.size is None:
        return tree_hash([dict(source.dataset(seed, 1, 0, 32)[0]) for seed in (0, 1)])
    return tree_hash({split: dict(source.reference(split)) for split in ("train", "test")})


def records_hash(records: Any) -> str:
    """A hash of records, one after the other: of their bytes, or of what else they are."""
    total = hashlib.sha256()
    for index in range(len(records)):
        record = records[index]
        if isinstance(record, (bytes, bytearray, memoryview)):
            total.update(f"{len(record)};".encode())
            total.update(record)
        elif isinstance(record, Mapping):
            total.update(tree_hash({name: np.asarray(value) for name, value in record.items()}).encode())
        else:
            total.update(f"{record!r};".encode())
    return total.hexdigest()[:DIGITS]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "to_dict"):
        return value.to_dict()
    raise TypeError(f"{value!r} ({type(value).__name__}) is no plain value, so it has no fingerprint.")
