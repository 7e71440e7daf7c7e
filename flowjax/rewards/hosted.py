"""Any Python function as a reward, in this process or in a pool of processes.

    method.rewards = dict(
        sharp=dict(name="python", function="my_rewards:sharpness", options=dict(scale=2.0)),
        liked=dict(name="python", function="my_rewards:Liked", processes=4, batch=16, timeout=30.0, retries=2),
    )

    def sharpness(samples, cond, scale):       # samples [b, ...], cond: name -> array [b, ...], all NumPy
        return scale * np.abs(np.diff(samples, axis=1)).mean(axis=(1, 2, 3))     # one number for each

A class is made once with the options, where it is called: a model is loaded there once, and its instances are called with
(samples, cond). What runs in this process runs in a thread, and calls of several threads may meet. A thread cannot be ended:
one that takes too long is left behind, and may go on for as long as it likes beside the next try. A process is killed, and has
JAX on the CPU alone: the accelerator's memory stays the training's.

What an instance remembers from call to call is its own: it is no part of a checkpoint, and chunks of a rollout and parts of
`batch` reach it one by one. A run goes on to the bit only with rewards that depend on samples and conditions alone.
"""

import functools
import threading
from typing import Any

from ml_collections import ConfigDict

from flowjax.rewards.calls import Score, check_limits, checked, in_parts, patiently, within
from flowjax.rewards.functions import find_function, prepare_function
from flowjax.rewards.reward import Reward
from flowjax.rewards.workers import Workers


def python(
    function: str,
    options: dict | ConfigDict | None = None,
    processes: int = 0,
    batch: int | None = None,
    timeout: float = 60.0,
    retries: int = 0,
) -> Reward:
    """A Python function of the host.

    Args:
      function: 'package.module:callable' of (samples, cond), or a class whose instances are.
      options: keyword arguments of the function, or of the class.
      processes: how many call it side by side; 0 for this one.
      batch: samples of a call; unless told all of them, shared out evenly among the processes.
      timeout: seconds for one call. Making the class, or starting a process, does not count.
      retries: after a call that raised, hung, or ended its process.
    """
    check_limits("python", batch, timeout, retries)
    if processes < 0:
        raise ValueError(f"The reward 'python' has processes={processes}; expected 0, this process, or more.")
    options = options.to_dict() if isinstance(options, ConfigDict) else dict(options or {})
    find_function(function, options)  # refused now, rather than when the first samples are there
    ask = _in_processes(function, options, processes, timeout) if processes else _here(function, options, timeout)

    def score(samples, cond):
        size = batch or max(-(-len(samples) // max(processes, 1)), 1)
        attempt = lambda part, its: patiently(lambda: ask(part, its), retries)
        return in_parts(attempt, samples, cond, size, max(processes, 1))

    return Reward(score=score)


def _in_processes(function: str, options: dict[str, Any], processes: int, timeout: float) -> Score:
    return functools.partial(Workers(function, options, processes).score, timeout=timeout)


def _here(function: str, options: dict[str, Any], timeout: float) -> Score:
    lock, made = threading.Lock(), []

    def ask(samples, cond):
        with lock:
            if not made:
                made.append(prepare_function(function, options))
        late = (
            f"'{function}' gave no scores for {len(samples)} samples within timeout={timeout:g} s. Its thread cannot be ended "
            "and may still run; processes=1 would end it. Allow more seconds, or make batch smaller."
        )
        return checked(within(lambda: made[0](samples, cond), timeout, late), len(samples), f"'{function}'")

    return ask
