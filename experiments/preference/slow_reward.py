"""A reward that takes its time on the host, for experiments/preference/speed.py."""

import time

import numpy as np

SECONDS = 0.05


def slow(samples: np.ndarray, cond: dict) -> np.ndarray:
    """The brightness of each sample, after 50 ms for the whole call."""
    time.sleep(SECONDS)
    return samples.reshape(len(samples), -1).mean(axis=1)
