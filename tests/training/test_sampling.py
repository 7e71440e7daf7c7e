"""What samplers are given, and what is made of what they draw: real examples, decoded codes, pictures of pairs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import toy_config

from flowjax.config import ConfigError
from flowjax.contract import Method, Phase, Role, Sampler
from flowjax.data.digits import digits
from flowjax.training.conditions import drawn_under
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, sample_picture, visible

DIGITS = digits()


@dataclasses.dataclass(frozen=True)
class Negatives:
    """Digits as codes: an example is minus an image."""

    decoded = DIGITS
    spec, size = DIGITS.spec, DIGITS.size

    def dataset(self, seed, batch_size, start, stop):
        return DIGITS.dataset(seed, batch_size, start, stop).map(lambda rows: {**rows, "data": -rows["data"]})

    def reference(self, split="test", count=None, seed=0):
        rows = DIGITS.reference(split, count, seed)
        return {**rows, "data": -rows["data"]}

    def decode(self, samples):
        return -samples


def run_with(source, **sampler):
    draw = lambda params, conditions, keys: params["student"]["gain"] * conditions["data"]
    loss = lambda params, batch, key: (params["student"]["gain"] * batch["mask"], {})
    method = Method(
        {"student": Role(init=lambda key: {"gain": jnp.float32(0.5)}, tx=optax.sgd(0.1))},
        {"fit": Phase(loss, ("student",))},
        {"half": Sampler(**{**dict(draw=draw, role="student", description={}, reads=("data",)), **sampler})},
    )
    run = Run(toy_config(evaluation=dict(count=20, batch_size=8)))
    run.__dict__.update(method=method, source=source)
    return run


def test_a_sampler_that_reads_real_examples_gets_held_out_ones_with_their_labels():
    run = run_with(DIGITS)
    drawer, params = Drawer(run), {"student": {"gain": np.float32(0.5)}}
    drawer.check("half")
    conditions = drawn_under(run, "half", 20)
    test = DIGITS.reference("test")
    for image, label in zip(conditions["data"], conditions["label"]):
        same = (test["data"] == image).all(axis=(1, 2, 3))
        assert same.any() and (test["label"][same] == label).all()
    samples = drawer.draw(params, "half", conditions, 20, "pictures", 8)
    np.testing.assert_array_equal(samples, conditions["data"] / 2)

    def measure(samples, conditions):
        return {"ratio": float(samples.sum() / conditions["data"].sum())}

    values, receipts = evaluate(run, drawer, {"ratio": measure}, params, 3, "half", 1.0)
    assert values["ratio"] == pytest.approx(0.5, rel=1e-5) and receipts[0]["samples"] == 20


def test_too_few_real_examples_or_unknown_ones_are_refused_before_training():
    with pytest.raises(ConfigError, match="Sampler 'half' reads real examples.*has 359. Ask for at most 359"):
        run = run_with(DIGITS)
        run.config.sample.count = 400
        Drawer(run).check("half")
    with pytest.raises(ConfigError, match="reads 'depth' of real examples, which have data, label"):
        Drawer(run_with(DIGITS, reads=("depth",))).check("half")


def test_codes_are_decoded_and_measured_against_what_they_are_codes_of():
    source = Negatives()
    drawer = Drawer(run_with(source))
    conditions = drawn_under(drawer.run, "half", 6)
    samples = drawer.draw({"student": {"gain": np.float32(0.5)}}, "half", conditions, 6, "pictures", 4)
    np.testing.assert_array_equal(samples, -conditions["data"] / 2)
    assert visible(source) is DIGITS and visible(DIGITS) is DIGITS


def test_a_picture_of_reconstructions_shows_pairs():
    white, black = np.ones((6, 4, 4, 1), np.float32), -np.ones((6, 4, 4, 1), np.float32)
    picture = sample_picture(black, DIGITS, {"data": white})
    cells = picture.shape[1] // 4  # two pairs of a white and a black image in a row
    middle = picture[cells // 2, cells // 2 :: cells].astype(int)[:4, 0]
    assert list(middle > 128) == [True, False, True, False]
