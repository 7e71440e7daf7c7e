"""Teachers: exact ones answer with the closed form, guided ones with both branches, misfits are refused in words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.methods.finished import Finished
from flowjax.methods.parts import make_setting
from flowjax.methods.teacher import _check_path, make_teacher, student_start
from flowjax.paths.oracles import GaussianMixture, ring
from flowjax.paths.path import make_path


def setting_of(data, **changes):
    config = defaults()
    config.network = dict(name="mlp", width=8, depth=1)
    for key, value in changes.items():
        config[key] = value
    return make_setting(config, data, "velocity")


X = jax.random.normal(jax.random.key(0), (6, 2))
T = jnp.linspace(0.0, 0.9, 6)


def test_the_mixture_is_exact_with_uneven_weights():
    data = DataSpec((2,))
    teacher = make_teacher(dict(name="mixture", weights="uneven"), data, setting_of(data))
    field = teacher.field(teacher.role.init(jax.random.key(0)), {})
    expected = ring(weights="uneven").prediction(make_path("linear"), "velocity", X, T)
    np.testing.assert_allclose(field.velocity(X, T), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [2.5, jnp.linspace(1.0, 3.0, 6)], ids=["one", "each"])
def test_guidance_combines_conditional_and_unconditional(scale):
    data = DataSpec((2,), 8)
    spec = dict(name="mixture", guidance_scale=2.5)
    teacher = make_teacher(spec, data, setting_of(data))
    tree, label = teacher.role.init(jax.random.key(0)), jnp.array([0, 1, 2, 3, 8, 5])
    given = {} if isinstance(scale, float) else {"scale": scale}
    found = teacher.field(tree, {"label": label}, **given).velocity(X, T)
    path, exact = make_path("linear"), ring()
    known = GaussianMixture(exact.weights, exact.means, exact.stds, jnp.arange(8))
    followed = known.prediction(path, "velocity", X, T, label)
    left = exact.prediction(path, "velocity", X, T)
    weight = jnp.broadcast_to(jnp.asarray(scale), (6,))[:, None]
    np.testing.assert_allclose(found, left + weight * (followed - left), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[4], left[4], rtol=1e-4, atol=1e-4)  # the null label is left alone


def test_misfits_are_refused():
    plain, labelled = DataSpec((2,)), DataSpec((2,), 8)
    with pytest.raises(ValueError, match="no condition to drop. Leave it at 1"):
        make_teacher(dict(name="mixture", guidance_scale=2.0), plain, setting_of(plain))
    blind = setting_of(labelled, network=dict(name="mlp", width=8, depth=1, class_conditional=False))
    with pytest.raises(ValueError, match="reads the condition 'label' and the student does not"):
        make_teacher(dict(name="mixture"), labelled, blind)
    teacher = make_teacher(dict(name="mixture"), plain, setting_of(plain))
    with pytest.raises(ValueError, match="An oracle has no parameters"):
        student_start("teacher", teacher, setting_of(plain))
    run = Finished(defaults(), setting_of(plain), "runs/one:ema")
    finished = dataclasses.replace(teacher, prediction="data", finished=run)
    with pytest.raises(ValueError, match="predicts 'velocity' and is to start as its teacher, which predicts 'data'"):
        student_start("teacher", finished, setting_of(plain))
    assert set(student_start("fresh", finished, setting_of(plain))) == {"init"}
    other_path = setting_of(plain, path=dict(name="trigonometric"))
    with pytest.raises(ValueError, match="trained on the path 'linear' and the student is to learn on 'trigonometric'"):
        _check_path(make_path("linear"), other_path.path)
    with pytest.raises(ValueError, match="Unknown teacher 'mixtur'"):
        make_teacher(dict(name="mixtur"), plain, setting_of(plain))
