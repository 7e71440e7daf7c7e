"""Images smaller than their arrays: what a mask hides is zero in every sample and counts in no formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.arrays import keep_visible
from flowjax.paths.noises import gaussian
from flowjax.paths.path import make_path
from flowjax.samplers.build import STEPPERS, make_branches, make_field, make_parts, make_sampler

CANVAS, HEIGHT, WIDTH, COUNT = 6, 3, 4, 3
LINEAR = make_path("linear")
KEYS = jax.random.split(jax.random.key(0), COUNT)
MASK = jnp.zeros((COUNT, CANVAS, CANVAS), bool).at[:, :HEIGHT, :WIDTH].set(True)
GUIDED = {
    "cfg": {"name": "cfg", "scale": 3.0},
    "apg": {"name": "apg", "scale": 4.0, "norm_threshold": 0.5},
    "cfg_zero_star": {"name": "cfg_zero_star", "scale": 3.0, "zero_steps": 0},
}


class OneNoise:
    """The same noise in the top left corner, whatever the shape and whatever is beside it."""

    def __init__(self, beside=1.0):
        self.scale = jnp.where(MASK[0], 1.0, beside)[..., None]

    def sample(self, keys, shape):
        whole = self.scale * gaussian().sample(keys, (CANVAS, CANVAS, 1))
        return whole[:, : shape[0], : shape[1]]


def predict(tree, x, t, conditions):
    """A network whose prediction depends on the mean of an image's own pixels; zero outside, as networks are."""
    visible = conditions.get("pixel_mask")
    x = keep_visible(x, visible)
    count = HEIGHT * WIDTH if visible is not None else x[0].size
    mean = x.sum(axis=(1, 2, 3), keepdims=True) / count
    return keep_visible(jnp.tanh(x + tree * conditions["pull"][:, None, None, None] + mean), visible)


def sampler(spec, prediction="velocity", shape=(CANVAS, CANVAS, 1), noise=None):
    null = lambda conditions: conditions | {"pull": jnp.zeros_like(conditions["pull"])}
    return make_sampler(
        {"role": "ema", **spec}, predict=predict, null=null, prediction=prediction, path=LINEAR,
        noise=noise or OneNoise(), shape=shape,
    )  # fmt: skip


CONDITIONS = {"pull": jnp.linspace(-1, 1, COUNT)}


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("name", ["heun", "unipc", "dopri5"])
def test_a_masked_image_is_drawn_as_if_its_array_ended_where_it_does(name, prediction):
    spec = {"name": name, **({"steps": 6} if name in STEPPERS else {"rtol": 1e-6, "atol": 1e-6})}
    guided = () if name != "heun" else GUIDED if prediction == "velocity" else ("cfg", "apg")
    for guidance in ({"name": "none"}, *(GUIDED[kind] for kind in guided)):
        spec["guidance"] = guidance
        whole = sampler(spec, prediction).draw({"ema": 0.7}, CONDITIONS | {"pixel_mask": MASK}, KEYS)
        alone = sampler(spec, prediction, (HEIGHT, WIDTH, 1)).draw({"ema": 0.7}, CONDITIONS, KEYS)
        np.testing.assert_allclose(whole[:, :HEIGHT, :WIDTH], alone, atol=2e-4 if name == "dopri5" else 2e-5)
        np.testing.assert_array_equal(whole[~MASK], 0)
        assert float(jnp.abs(alone).min()) > 0


def test_step_sizes_are_chosen_by_what_is_seen():
    spec, conditions = {"name": "dopri5", "rtol": 1e-3, "atol": 1e-3}, CONDITIONS | {"pixel_mask": MASK}
    drawn = [sampler(spec, "data", noise=OneNoise(beside)).draw({"ema": 0.7}, conditions, KEYS) for beside in (1, 50)]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("name", ["sde", "ancestral", "edm_stochastic", "consistency", "predictor_corrector"])
def test_noise_that_a_sampler_adds_is_hidden_too(name):
    spec = {"name": name, "steps": 3} | ({"churn": 2.0} if name == "edm_stochastic" else {})
    drawn = sampler(spec, noise=gaussian()).draw({"ema": 0.7}, CONDITIONS | {"pixel_mask": MASK}, KEYS)
    np.testing.assert_array_equal(drawn[~MASK], 0)
    assert bool(jnp.isfinite(drawn).all()) and float(jnp.abs(drawn[MASK]).min()) > 0


@pytest.mark.parametrize("guidance", GUIDED)
def test_what_lies_outside_an_image_has_no_part_in_guidance(guidance):
    """A stochastic sampler's point is noise everywhere: the guided prediction must not see what is hidden of it."""
    parts = make_parts({"name": "sde", "steps": 4, "role": "ema", "guidance": GUIDED[guidance]}, "velocity", LINEAR)
    conditions, params = CONDITIONS | {"pixel_mask": MASK}, {"ema": 0.7}
    null = lambda conditions: conditions | {"pull": jnp.zeros_like(conditions["pull"])}
    branches = make_branches(parts, null, lambda tree, conditions: conditions, params, conditions)
    field = make_field(parts, predict, "velocity", LINEAR, params, branches)
    x, t = gaussian().sample(KEYS, (CANVAS, CANVAS, 1)), jnp.full(COUNT, 0.4)
    memory = (field.init(x),) if hasattr(field, "init") else ()
    first = lambda value: value[0] if memory else value
    seen, clean = (first(field.predict(point, t, *memory)) for point in (x, keep_visible(x, MASK)))
    np.testing.assert_array_equal(seen, clean)
    np.testing.assert_array_equal(clean[~MASK], 0)


def test_a_shape_of_ones_own_and_grids_that_go_by_what_is_seen():
    spec = {"name": "heun", "steps": 5, "grid": {"name": "shifted", "shift": "resolution", "base_shape": (4, 4)}}
    grid = lambda shapes, **more: make_parts({**spec, **more}, "velocity", LINEAR, *shapes).grid
    canvas, image = (12, 12, 3), (8, 8, 3)
    np.testing.assert_array_equal(grid((canvas, image)), grid((image,)))
    assert np.abs(grid((canvas, image)) - grid((canvas,))).max() > 1e-2
    np.testing.assert_array_equal(grid((canvas, image), shape=(12, 4)), grid(((12, 4, 3),)))
    assert sampler({"name": "heun", "steps": 2, "shape": (4, 8)}).shape == (4, 8, 1)
    assert sampler({"name": "heun", "steps": 2}).shape is None
