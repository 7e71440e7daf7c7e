"""Rewards of the host: good ones, several at once, and every way to go wrong, stopped and skipped."""

import os
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from host_functions import Model
from ml_collections import ConfigDict

from flowjax.contract import Role
from flowjax.rewards import REWARDS, Reward, RewardMistake, Rewards, make_rewards

SAMPLES = np.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 0.0], [3.0, 1.0], [-2.0, 1.0]], np.float32)
LABELS = np.array([10, 20, 30, 40, 50])
FIRST = np.array([11.0, 19.0, 30.0, 43.0, 48.0])


def python(function, failures="stop", name="own", **options):
    return make_rewards(
        {name: dict(name="python", function=f"host_functions:{function}", **options)}, REWARDS, failures
    )


def scored(rewards, **cond):
    (values,) = rewards.score(SAMPLES, cond).values()
    return values


def gone(pid):
    """Whether there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_function_with_options_whole_and_in_parts():
    np.testing.assert_array_equal(scored(python("first"), label=LABELS), FIRST)
    np.testing.assert_array_equal(scored(python("first", batch=2), label=LABELS), FIRST)
    halved = python("first", options=ConfigDict(dict(scale=0.5)))
    assert halved.hosted.keys() == {"own"} and halved.values({}, jnp.asarray(SAMPLES), {}) == {}
    np.testing.assert_array_equal(scored(halved), 0.5 * SAMPLES[:, 0])
    assert halved.score(SAMPLES[:0], {})["own"].shape == (0,)


def test_a_class_is_made_once_and_when_it_is_needed():
    rewards = python("Model", options=dict(scale=2.0), batch=2)
    assert Model.made == 0
    np.testing.assert_array_equal(scored(rewards), [102, 102, 104, 104, 106])
    np.testing.assert_array_equal(scored(rewards), [108, 108, 110, 110, 112])


@pytest.mark.parametrize("failures", ["stop", "skip"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_short", r"shape \(4,\) for 5 samples"),
        ("column", r"shape \(5, 1\) for 5 samples"),
        ("words", "gave list of <U4; expected one real number"),
        ("nothing", "gave NoneType of object"),
        ("imaginary", "of complex64"),
    ],
)
def test_scores_of_a_wrong_number_or_type_are_always_an_error(function, message, failures):
    with pytest.raises(RewardMistake, match=f"The reward 'own' is wrong: .*{message}"):
        scored(python(function, failures, retries=3))
    own = make_rewards({"own": dict(name="own")}, {"own": lambda: Reward(score=lambda samples, cond: [1.0])}, failures)
    with pytest.raises(RewardMistake, match="'own' is wrong: It gave an array of shape \\(1,\\) for 5"):
        scored(own)


def test_a_reward_that_raises_stops_or_is_skipped(capsys):
    with pytest.raises(
        RuntimeError, match="The reward 'own' failed: KeyError: 'no such colour'. Mend it, or set failures"
    ):
        scored(python("raising"))
    assert capsys.readouterr().err == ""
    skipping = python("raising", "skip")
    assert np.isnan(scored(skipping)).all()
    said = capsys.readouterr().err
    assert said == "The reward 'own' failed, and 5 samples are left out: KeyError: 'no such colour'.\n"


def test_a_reward_that_hangs_stops_or_is_skipped(tmp_path, capsys):
    options = dict(timeout=0.2, options=dict(file=str(tmp_path / "calls"), seconds=3.0))
    with pytest.raises(TimeoutError, match="The reward 'own' failed: .*no scores for 5 samples within timeout=0.2 s"):
        scored(python("hanging", **options))
    with pytest.raises(TimeoutError, match="It was tried 2 times"):
        scored(python("hanging", retries=1, **options))
    assert np.isnan(scored(python("hanging", "skip", **options))).all()
    assert "5 samples are left out: 'host_functions:hanging' gave no scores" in capsys.readouterr().err
    assert len((tmp_path / "calls").read_text().split()) == 4


def test_a_reward_that_fails_twice_works_with_two_retries(tmp_path):
    options = dict(file=str(tmp_path / "enough"))
    np.testing.assert_array_equal(scored(python("fails_first", retries=2, options=options)), SAMPLES[:, 0])
    options = dict(file=str(tmp_path / "too_few"))
    with pytest.raises(RuntimeError, match="ConnectionError: not yet. It was tried 2 times"):
        scored(python("fails_first", retries=1, options=options))


def test_nan_stops_or_leaves_its_samples_out():
    groups = np.zeros(5, int)
    values = {"own": scored(python("nan_for_negative"))}
    with pytest.raises(
        ValueError, match="The reward 'own' is no finite number for 2 of 5 samples, .* sample 1. Nothing is"
    ):
        python("nan_for_negative").total(values, groups)
    skipping = python("nan_for_negative", "skip")
    np.testing.assert_array_equal(skipping.total(values, groups), [1, np.nan, 0, 3, np.nan])
    assert skipping.failed(values) == 0.4
    infinite = {"own": np.array([1.0, np.inf, -np.inf, 2.0])}
    np.testing.assert_array_equal(skipping.total(infinite, np.zeros(4, int)), [1, np.nan, np.nan, 2])


def test_samples_without_a_reward_do_not_count_in_the_spread_of_the_others():
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=(2, 12))
    groups = np.repeat([0, 1], 6)
    one[[0, 7]], other[[0, 8]] = np.nan, np.inf
    kinds = {"fixed": lambda: Reward(score=lambda samples, cond: samples)}
    specs = {"a": dict(name="fixed"), "b": dict(name="fixed", weight=-3.0)}
    rewards = make_rewards(specs, kinds, "skip")
    expected = np.full(12, np.nan)
    unit = lambda x: (x - x.mean()) / x.std()
    for rows in (np.arange(1, 6), np.array([6, 9, 10, 11])):
        expected[rows] = (unit(one[rows]) - 3 * unit(other[rows])) / 4
    np.testing.assert_allclose(rewards.total({"a": one, "b": other}, groups), expected, atol=1e-3)
    assert rewards.failed({"a": one, "b": other}) == 3 / 12
    nothing = np.full(12, np.nan)
    assert np.isnan(rewards.total({"a": nothing, "b": other}, groups)).all()
    with pytest.raises(ValueError, match=r"values of the rewards \['a'\]; expected \['a', 'b'\]"):
        rewards.total({"a": one}, groups)
    with pytest.raises(ValueError, match="The reward 'b' is no finite number for 2 of 12"):
        make_rewards(specs, kinds).total({"a": np.ones(12), "b": other}, groups)


def test_several_rewards_take_the_time_of_the_slowest():
    slow = dict(name="python", function="host_functions:slow", options=dict(seconds=0.5))
    rewards = make_rewards({f"r{number}": dict(slow) for number in range(6)}, REWARDS)
    began = time.perf_counter()
    found = rewards.score(SAMPLES, {})
    assert time.perf_counter() - began < 1.5  # one after another would take 3 s
    assert list(found) == [f"r{number}" for number in range(6)]
    # And as long as the first that fails, where that stops.
    both = {
        "slow": {**slow, "options": dict(seconds=3.0)},
        "bad": dict(name="python", function="host_functions:raising"),
    }
    began = time.perf_counter()
    with pytest.raises(RuntimeError, match="'bad' failed"):
        make_rewards(both, REWARDS).score(SAMPLES, {})
    assert time.perf_counter() - began < 1.5


def test_calls_of_several_threads_are_never_mixed_up():
    rewards = make_rewards(
        {
            "parts": dict(name="python", function="host_functions:first", batch=2),
            "whole": dict(name="python", function="host_functions:slow", options=dict(seconds=0.02)),
        },
        REWARDS,
    )
    found = {}

    def ask(number):
        found[number] = rewards.score(SAMPLES + number, {"label": LABELS})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for number in range(8):
        np.testing.assert_array_equal(found[number]["parts"], FIRST + number)
        np.testing.assert_array_equal(found[number]["whole"], FIRST + number)


def test_a_function_may_not_change_what_others_read():
    with pytest.raises(RuntimeError, match="read-only"):
        scored(python("changing"))
    half = jnp.asarray(SAMPLES, jnp.bfloat16)  # of which NumPy knows nothing
    np.testing.assert_array_equal(python("first").score(np.asarray(half), {})["own"], SAMPLES[:, 0])
    with pytest.raises(RewardMistake, match="5 samples and 2 rows of the condition 'label'"):
        scored(python("first"), label=LABELS[:2])


def test_processes_share_the_work_and_answer_in_order():
    rewards = python("first", processes=2, batch=1)
    np.testing.assert_array_equal(scored(rewards, label=LABELS), FIRST)
    pids = python("process", processes=2)
    found = scored(pids)
    assert set(np.unique(found, return_counts=True)[1]) == {2, 3} and os.getpid() not in found  # 5 samples, two halves
    np.testing.assert_array_equal(np.unique(scored(pids)), np.unique(found))  # they stay
    del pids
    assert all(map(gone, map(int, set(found))))  # and go with the reward


def test_a_process_that_hangs_is_killed_and_another_takes_its_place(tmp_path):
    file = tmp_path / "pids"
    rewards = python("late_once", processes=1, timeout=2.0, retries=1, options=dict(file=str(file)))
    began = time.perf_counter()
    np.testing.assert_array_equal(scored(rewards, label=LABELS), FIRST)
    assert time.perf_counter() - began < 30  # the first call would take a minute
    (pid,) = map(int, file.read_text().split())
    assert gone(pid)


def test_processes_raise_skip_and_die_as_configured(capsys):
    with pytest.raises(RuntimeError, match="The reward 'own' failed: KeyError: 'no such colour'") as caught:
        scored(python("raising", processes=1))
    assert "host_functions.py" in "".join(caught.value.__cause__.__notes__)  # where in the other process
    with pytest.raises(RewardMistake, match=r"shape \(4,\) for 5 samples"):
        scored(python("too_short", "skip", processes=1))
    assert np.isnan(scored(python("dying", "skip", processes=1))).all()
    assert "The process of 'host_functions:dying' ended with exit code 3 and gave nothing." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(function="host_functions"), "'host_functions'; expected 'package.module:callable'"),
        (dict(function="no_such_module:f"), "cannot be imported: No module named 'no_such_module'"),
        (dict(function="host_functions:frist"), "has no 'frist'. Did you mean 'first'"),
        (dict(function="host_functions:not_callable"), "is int; expected a function"),
        (dict(function="host_functions:first", options=dict(sclae=1.0)), r"does not take \(samples, cond, sclae=1.0\)"),
        (dict(function="host_functions:Model", options=dict(size=1)), r"does not take \(size=1\)"),
        (dict(function="host_functions:first", processes=-1), "processes=-1"),
        (dict(function="host_functions:first", batch=0), "batch=0"),
        (dict(function="host_functions:first", timeout=0.0), "timeout=0.0"),
        (dict(function="host_functions:first", retries=-1), "retries=-1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(options, message):
    with pytest.raises(ValueError, match=message):
        make_rewards({"own": dict(name="python", **options)}, REWARDS)


def test_a_reward_is_one_of_two_things():
    worth = lambda *arguments: 0.0
    with pytest.raises(ValueError, match="neither of value and score"):
        Reward()
    with pytest.raises(ValueError, match="both of value and score"):
        Reward(worth, worth)
    for wrong in (dict(differentiable=True), dict(roles={"net": Role(load=dict)})):
        with pytest.raises(ValueError, match="A reward on the host has no gradient"):
            Reward(score=worth, **wrong)
    assert Reward(worth).differentiable and not Reward(score=worth).differentiable
    assert not Reward(worth, differentiable=False).differentiable
    with pytest.raises(ValueError, match="Unknown way with failures of rewards 'ignore'"):
        make_rewards({"own": dict(name="brightness")}, REWARDS, "ignore")


def test_rewards_may_share_a_role_but_not_its_name():
    role, other = Role(load=dict), Role(load=dict)
    worth = lambda params, samples, cond: samples[:, 0]
    shared = Rewards(
        {"a": Reward(worth, roles={"net": role}), "b": Reward(worth, roles={"net": role})}, dict(a=1.0, b=1.0)
    )
    assert shared.roles == {"net": role}
    with pytest.raises(ValueError, match="The rewards 'a' and 'b' both have a role 'net'"):
        Rewards({"a": Reward(worth, roles={"net": role}), "b": Reward(worth, roles={"net": other})}, dict(a=1.0, b=1.0))


def test_the_weighted_sum_is_for_rewards_that_have_a_gradient():
    specs = {"a": dict(name="brightness", weight=-2.0), "b": dict(name="quadratic", weight=3.0)}
    rewards = make_rewards(specs, REWARDS)
    values = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([0.5, 0.0])}
    np.testing.assert_allclose(rewards.weighted(values), [-0.5, -4.0])
    hosted = make_rewards({**specs, "c": dict(name="python", function="host_functions:first")}, REWARDS)
    with pytest.raises(ValueError, match="the reward 'c' is scored on the host"):
        hosted.weighted(values)
    blunt = Rewards({"a": Reward(lambda *arguments: 0.0, differentiable=False)}, {"a": 1.0})
    with pytest.raises(ValueError, match="draft follows the gradient of its rewards, and the reward 'a' says that"):
        blunt.refuse_without_gradient("draft")


def test_jax_and_host_rewards_together():
    rewards = make_rewards(
        {"bright": dict(name="brightness"), "own": dict(name="python", function="host_functions:first")}, REWARDS
    )
    device = rewards.values({}, jnp.asarray(SAMPLES), {})
    host = rewards.score(SAMPLES, {})
    assert device.keys() == {"bright"} and host.keys() == {"own"}
    unit = lambda x: (x - x.mean()) / x.std()
    expected = (unit(SAMPLES.mean(1)) + unit(SAMPLES[:, 0])) / 2
    np.testing.assert_allclose(rewards.total({**device, **host}, np.zeros(5, int)), expected, atol=1e-3)
