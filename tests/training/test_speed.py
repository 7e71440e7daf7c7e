"""Operations, counted by hand; utilisation is arithmetic."""

import jax
import jax.numpy as jnp
import pytest

from flowjax.config import load
from flowjax.training import operations as counting
from flowjax.training.operations import Meter, operations
from flowjax.training.plan import lines, plan, update_flops
from flowjax.training.run import Run
from flowjax.training.speed import peak_flops

MATRIX, ROWS = jnp.ones((8, 8)), jnp.ones((4, 8))
PRODUCT = 2 * 4 * 8 * 8
IMAGES, KERNEL = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
CONVOLUTION = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)


def looped(x):
    return jax.lax.scan(lambda x, _: (x @ MATRIX, None), x, None, length=10)[0]


def strided(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    "function, arguments, expected",
    [
        (looped, (ROWS,), 10 * PRODUCT),
        (jax.grad(lambda x: looped(x).sum()), (ROWS,), 20 * PRODUCT),
        (jax.jit(jax.checkpoint(lambda x: jnp.sin(x @ MATRIX) @ MATRIX)), (ROWS,), 2 * PRODUCT),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ MATRIX, lambda x: looped(x), x), (ROWS,), 10 * PRODUCT),
        (lambda x: jax.vmap(lambda row: row @ MATRIX)(x), (ROWS,), PRODUCT),
        (strided, (IMAGES, KERNEL), CONVOLUTION),
        # Each gradient of a product has as many operations as the product.
        (jax.value_and_grad(lambda x: strided(x, KERNEL).sum()), (IMAGES,), 2 * CONVOLUTION),
        (jax.value_and_grad(lambda kernel: strided(IMAGES, kernel).sum()), (KERNEL,), 2 * CONVOLUTION),
    ],
)
def test_operations_by_hand(function, arguments, expected):
    assert operations(function, *arguments) == expected


def test_an_updates_operations_are_those_of_its_matrices():
    width, batch = 256, 256
    run = Run(load("configs/points.py:tiny", [f"network.width={width}", f"batch_size={batch}"]))
    layers = [(19, width), (width, width), (width, width), (width, 2)]
    products = 2 * batch * sum((2 if n == 0 else 3) * i * o for n, (i, o) in enumerate(layers))
    assert update_flops(run, run.executor, ("flow",)) == products
    halves = Run(
        load("configs/points.py:tiny", [f"network.width={width}", f"batch_size={batch}", "gradient_accumulation=2"])
    )
    assert update_flops(halves, halves.executor, ("flow",)) == update_flops(run, run.executor, ("flow",))


def test_peaks_are_those_of_the_longest_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5p") == 459e12
    assert peak_flops("cpu") is None


def test_utilisation_is_what_was_sent_over_what_could_be_done(monkeypatch):
    assert Meter().utilisation(1.0) is None  # nobody knows what a CPU can do
    peak = 1e6 * jax.device_count()
    told = Meter(1e6)
    told.sent("loop", 1, {"data": ROWS}, lambda: 2.0 * peak)
    assert told.utilisation(4.0) == 0.5
    monkeypatch.setattr(counting, "peak_flops", lambda device: 1e6)
    meter, made = Meter(), []
    for rows in (ROWS, ROWS, jnp.concatenate([ROWS, ROWS])):
        meter.sent("loop", 3, {"data": rows}, lambda rows=rows: made.append(1) or operations(looped, rows))
    assert len(made) == 2  # counted once for each shape
    assert meter.utilisation(0.5) == pytest.approx(3 * (1 + 1 + 2) * 10 * PRODUCT / (peak * 0.5))
    assert meter.utilisation(0.5) == 0.0


def test_where_examples_have_several_shapes_the_operations_are_their_mean():
    scenes = lambda side: dict(name="shapes", resolution=side, sizes=("large",), text_length=8, textured=0.0)
    config = load("configs/shapes.py:tiny,network=dit")
    counted = {}
    for name, data in {
        "large": scenes(16),
        "small": scenes(8),
        "both": dict(name="mix", sources=(scenes(16), scenes(8)), weights=(3, 1)),
    }.items():
        config.data = data
        run = Run(config)
        counted[name] = update_flops(run, run.executor, ("flow",))
    assert counted["small"] < 0.5 * counted["large"]
    assert counted["both"] == pytest.approx(0.75 * counted["large"] + 0.25 * counted["small"])
    assert "16 x 16 x 3 75%, 8 x 8 x 3 25%" in "\n".join(lines(plan(run)))
