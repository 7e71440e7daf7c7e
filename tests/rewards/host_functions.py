"""Functions that rewards of the host call by name, good ones and bad ones, in this process or in others."""

import os
import pathlib
import time

import numpy as np


def first(samples, cond, scale=1.0):
    """The first number of each sample, plus its label."""
    return scale * samples.reshape(len(samples), -1)[:, 0] + cond.get("label", 0)


def raising(samples, cond):
    raise KeyError("no such colour")


def hanging(samples, cond, file, seconds=60.0):
    """Leaves the process's number in a file, a line for each call, and takes very long."""
    with open(file, "a") as out:
        out.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return first(samples, cond)


def late_once(samples, cond, file):
    """Hangs in its first call, works in others."""
    if not pathlib.Path(file).exists():
        return hanging(samples, cond, file)
    return first(samples, cond)


def fails_first(samples, cond, file, times=2):
    """Raises as often as told, then works: the file has a line for each call."""
    with open(file, "a") as out:
        out.write("called\n")
    if len(pathlib.Path(file).read_text().split()) <= times:
        raise ConnectionError("not yet")
    return first(samples, cond)


def nan_for_negative(samples, cond):
    worth = first(samples, cond)
    return np.where(worth < 0, np.nan, worth)


def too_short(samples, cond):
    return first(samples, cond)[:-1]


def column(samples, cond):
    return first(samples, cond)[:, None]


def words(samples, cond):
    return ["good"] * len(samples)


def nothing(samples, cond):
    return None


def imaginary(samples, cond):
    return first(samples, cond) * 1j


def slow(samples, cond, seconds):
    time.sleep(seconds)
    return first(samples, cond)


def changing(samples, cond):
    samples += 1
    return first(samples, cond)


def dying(samples, cond):
    os._exit(3)


def process(samples, cond):
    """The number of the process, for every sample, after a moment that lets others come in between."""
    time.sleep(0.2)
    return np.full(len(samples), os.getpid())


class Model:
    """Made once, called often: the score is how often it was called, of how often it was made."""

    made = 0

    def __init__(self, scale=1.0):
        Model.made += 1
        self.scale, self.calls = scale, 0

    def __call__(self, samples, cond):
        self.calls += 1
        return np.full(len(samples), self.scale * self.calls + 100 * Model.made)


not_callable = 3


def known_below(samples, cond, least=1.0):
    """The first number of each sample where that is below `least`; elsewhere nobody knows."""
    values = first(samples, cond)
    return np.where(values < least, values, np.nan)
