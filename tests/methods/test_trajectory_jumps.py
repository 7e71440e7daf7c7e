"""Consistency trajectory models, beside the loss itself: how far jumps go, and what the shortest of them are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import TEACHER, batch_of, config_of, exact_network, method_of, params_of

from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.network import Network
from flowjax.paths.path import make_path

PLAIN = dict(name="trajectory_consistency", adaptive=False)
TWO_TIMES = dict(name="exact", two_times=True)


@pytest.mark.parametrize("path_name", ["linear", "trigonometric"])
def test_the_exact_map_of_the_teacher_has_no_error_however_far_jumps_go(monkeypatch, path_name):
    monkeypatch.setitem(NETWORKS, "exact", exact_network(make_path(path_name)))
    config = config_of(path=dict(name=path_name), network=TWO_TIMES)
    method = method_of(config, **PLAIN, teacher=TEACHER, field="teacher", to_end=0.5, solver_steps=32)
    value, metrics = method.phases["trajectories"].loss(params_of(method), batch_of(), jax.random.key(0))
    np.testing.assert_allclose(metrics["denoising"], 0.0, atol=1e-8)  # from data it would be the spread of pairs
    np.testing.assert_allclose(value, 0.0, atol=1e-5)


@pytest.mark.parametrize(("to_end", "expected"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_that_share_of_jumps_goes_to_the_clean_end(monkeypatch, to_end, expected):
    ends = []

    def spy(data, dtype="float32", two_times=False):
        def apply(tree, x, t, cond, *, s=None, keys=None):
            ends.append(s)
            return tree["astray"] + 0.0 * x

        return Network(lambda key: {"astray": jnp.zeros(2)}, apply, lambda cond, dropped: cond, {}, two_times)

    monkeypatch.setitem(NETWORKS, "exact", spy)
    rows = 4_000
    method = method_of(config_of(network=TWO_TIMES, batch_size=rows), **PLAIN, teacher=TEACHER, to_end=to_end)
    method.phases["trajectories"].loss(params_of(method), batch_of(rows=rows), jax.random.key(0))
    student_jumps = np.asarray(ends[-3])  # before it the target's, after it the judge's and the field's
    assert np.mean(student_jumps == 1.0) == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(rows))


def test_a_guided_teacher_is_followed_in_the_shortest_jumps_too():
    labelled, guided = DataSpec((2,), 8, std=1.4), dict(name="mixture", guidance_scale=2.0)
    config = config_of(network__two_times=True)
    with pytest.raises(ValueError, match="would teach the shortest of them a field without guidance"):
        method_of(config, labelled, **PLAIN, teacher=guided)
    with pytest.raises(ValueError, match="Did you mean 'teacher'"):
        method_of(config, labelled, **PLAIN, teacher=guided, field="teachers")

    def errors(scale):
        method = method_of(config, labelled, **PLAIN, teacher={**guided, "guidance_scale": scale}, field="teacher")
        batch = batch_of(label=jnp.arange(8))
        return method.phases["trajectories"].loss(params_of(method), batch, jax.random.key(0))[1]["denoising"]

    assert not np.allclose(errors(1.0), errors(2.0), rtol=1e-2)
