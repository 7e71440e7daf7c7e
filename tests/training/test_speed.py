"""Operations of an update, counted by hand; utilisation is arithmetic."""

import pytest

from flowjax.config import load
from flowjax.training.plan import lines, plan, update_flops
from flowjax.training.run import Run
from flowjax.training.speed import mfu, peak_flops


def test_an_updates_operations_are_those_of_its_matrices():
    width, batch = 256, 256
    run = Run(load("configs/points.py:tiny", [f"network.width={width}", f"batch_size={batch}"]))
    layers = [(19, width), (width, width), (width, width), (width, 2)]
    products = 2 * batch * sum((2 if n == 0 else 3) * i * o for n, (i, o) in enumerate(layers))
    assert products < update_flops(run, run.executor, ("flow",)) < 1.25 * products
    halves = Run(
        load("configs/points.py:tiny", [f"network.width={width}", f"batch_size={batch}", "gradient_accumulation=2"])
    )
    assert update_flops(halves, halves.executor, ("flow",)) == update_flops(run, run.executor, ("flow",))


def test_utilisation():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5p") == 459e12
    assert peak_flops("cpu") is None
    assert mfu(1e12, 10.0, "NVIDIA A100-SXM4-40GB", 2) == pytest.approx(1e13 / 624e12)
    assert mfu(1e12, 10.0, "cpu", 2) is None and mfu(None, 10.0, "TPU v4", 1) is None


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
