r"""Counter-based host randomness: every number is a pure function of (seed, stream, step, row).

NumPy's Philox turns a key and a 256-bit counter into four 64-bit words, with no state in between. We set

    key = (seed, stream),    counter = (row * blocks, step, 0, 0),

and give every row `blocks` whole blocks of four uniforms. Row i of step k then has the same uniforms whichever process
draws it, alone or with a thousand neighbours, after a resume or without one; and a process draws nothing but its rows.
"""

import numpy as np
from jaxtyping import Float

# One stream for each use of randomness, so that no two uses of one seed share a draw.
TRAIN, REFERENCE_TRAIN, REFERENCE_TEST, ORDER, AUGMENT, COUPLE, SPLIT, MEASURE, TURN, CHILD = range(10)
LATENT, LATENT_REFERENCE, PAIR, MISTAKE = range(10, 14)


def generator(seed: int, stream: int, step: int = 0, row: int = 0) -> np.random.Generator:
    """A generator that starts at counter (row, step) of the key (seed, stream)."""
    key = np.array([seed % 2**64, stream], np.uint64)
    counter = np.array([row, step, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def row_uniforms(
    seed: int, stream: int, step: int, start: int, stop: int, columns: int = 4
) -> Float[np.ndarray, "n c"]:
    """Uniform draws in [0, 1) for the rows start..stop of a step: [stop - start, columns], float64."""
    blocks = -(-columns // 4)
    draws = generator(seed, stream, step, start * blocks).random((stop - start, 4 * blocks))
    return draws[:, :columns]


def normal_pairs(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Two standard normals from two uniforms (Box and Muller, 1958): a fixed number of uniforms, unlike rejection."""
    radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
