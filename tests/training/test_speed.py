"""Operations of an update, counted by hand; utilisation is arithmetic."""

import pytest

from flowjax.config import load
from flowjax.training.plan import update_flops
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
