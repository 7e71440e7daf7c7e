"""The doctor finds what is wrong, each check by itself, and passes what is right; the plan counts without allocating."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import toy_config

from flowjax.config import load
from flowjax.contract import DataSpec, Method, Phase, Role, Sampler, Track
from flowjax.data import SOURCES
from flowjax.training import check as doctor
from flowjax.training.check import check
from flowjax.training.plan import plan
from flowjax.training.run import Run


def toy_method(precision="float32", time_high=1.0, dead=False, constant=False, shifted=False, fragile=False) -> Method:
    """Predicts data from noisy data with a two-layer network; every option is one disease."""

    def init(key):
        first, second = jax.random.split(key)
        tree = {"in": jax.random.normal(first, (3, 32)) * 0.5, "out": jax.random.normal(second, (32, 2)) * 0.2}
        return tree | ({"unused": jnp.ones(3)} if dead else {})

    def loss(params, batch, key):
        keys = jax.random.split(key, len(batch["row"]))
        t = time_high * jax.vmap(jax.random.uniform)(keys)
        dtype = jnp.dtype(precision)
        tree = jax.tree.map(lambda leaf: leaf.astype(dtype), params["student"])
        x = jnp.concatenate([batch["data"] * t[:, None], t[:, None]], -1).astype(dtype)
        hidden = x @ tree["in"]
        if fragile:  # a small difference of large numbers
            hidden = (hidden + 1000.0) - 1000.0
        out = (jnp.tanh(hidden) @ tree["out"]).astype(jnp.float32)
        target = jax.lax.stop_gradient(out) + 1.0 if constant else batch["data"]
        return jnp.sum((out - target) ** 2, -1), {"t": t}

    start = dict(init=init) if shifted else dict(copy_of="student")
    grid = tuple(np.linspace(0, 1, 11))
    return Method(
        roles={
            "student": Role(init=init, tx=optax.adam(1e-2)),
            "ema": Role(**start, track=Track("student", lambda step: 0.1)),
        },
        phases={"fit": Phase(loss, ("student",))},
        samplers={"default": Sampler(lambda p, c, k: jnp.zeros((len(k), 2)), "ema", {}, grid)},
    )


def run_with(monkeypatch, **options):
    build = lambda config, source: toy_method(config.precision, **options)
    monkeypatch.setattr(doctor, "build_method", build)
    config = toy_config(batch_size=64, precision=options.pop("precision", "float32"))
    run = Run(config)
    run.__dict__["method"] = build(config, None)
    return run


def failures(results):
    return {result.name for result in results if not result.passed}


def test_a_healthy_method_passes_everything(monkeypatch):
    lines = []
    results = check(run_with(monkeypatch), lines.append)
    assert failures(results) == set() and len(results) == len(lines) == 7
    assert all(line.startswith("ok") for line in lines)


def test_the_scale_of_images_on_a_canvas_is_that_of_what_is_seen():
    mask = jnp.zeros((4, 8, 8), bool).at[:, :2, :2].set(True)
    batch = {"data": jnp.where(mask[..., None], jax.random.normal(jax.random.key(0), (4, 8, 8, 50)), 0.0)}
    run = Run(toy_config())
    run.__dict__["source"] = SimpleNamespace(spec=DataSpec((8, 8, 50), visible_shape=(2, 2)))
    assert not doctor._data(run, batch).passed  # a sixteenth is seen: the whole has a standard deviation of 1 / 4
    seen = doctor._data(run, batch | {"pixel_mask": mask})
    assert seen.passed and ("std 1.0" in seen.detail or "std 0.9" in seen.detail)


@pytest.mark.parametrize(
    "disease, found",
    [
        (dict(dead=True), "gradient reaches every parameter of 'fit'"),
        (dict(constant=True), "'fit' learns one batch by heart"),
        (dict(time_high=0.7), "training times against the grid of 'default'"),
    ],
)
def test_each_disease_is_found_by_its_check(monkeypatch, disease, found):
    lines = []
    results = check(run_with(monkeypatch, **disease), lines.append)
    assert failures(results) == {found}
    assert any(line.startswith("FAIL") and "->" in line for line in lines)


def test_an_average_that_does_not_start_at_its_source_is_found():
    source = SOURCES["mixture"]()
    method = toy_method()
    run = Run(toy_config(batch_size=64))
    run.__dict__.update(method=method, source=source)
    state = run.executor.start()
    moved = state.replace(params=dict(state.params, ema=jax.tree.map(lambda leaf: leaf + 1e-3, state.params["ema"])))
    good, bad = next(doctor._copies(method, state)), next(doctor._copies(method, moved))
    assert good.passed and not bad.passed and "0.001" in bad.detail


def test_bfloat16_that_loses_digits_is_found(monkeypatch):
    sound = run_with(monkeypatch)
    sound.config.precision = "bfloat16"
    assert failures(check(sound, lambda line: None)) == set()
    run = run_with(monkeypatch, fragile=True)
    run.config.precision = "bfloat16"
    assert "bfloat16 against float32 gradient of 'fit'" in failures(check(run, lambda line: None))


def test_data_out_of_scale_is_found(monkeypatch):
    run = run_with(monkeypatch)
    run.__dict__["source"] = dataclasses.replace(SOURCES["mixture"](), spec=DataSpec((2,), None, 10.0))
    assert "data" in failures(check(run, lambda line: None))


def test_the_config_of_the_readme_passes(tmp_path):
    run = Run(load("configs/points.py:tiny", ["network.width=16"]), tmp_path)
    results = check(run, lambda line: None)
    assert failures(results) == set()
    assert (tmp_path / "check.json").is_file()


def test_plan_counts_parameters_bytes_and_operations_on_shapes(monkeypatch):
    allocated = []
    monkeypatch.setattr(jax, "device_put", lambda *a, **k: allocated.append(a))
    config = load("configs/points.py:tiny", ["sharding=zero3", "batch_size=256", "network.width=256"])
    report = plan(Run(config))
    widths = [(19, 256), (256, 256), (256, 256), (256, 2)]
    expected = sum(i * o + o for i, o in widths)
    assert report["parameters"] == {"student": expected, "ema": expected}
    # 19 inputs: two coordinates, t and eight pairs of octaves.
    # zero3 over eight devices: the large matrices are split eight ways, vectors and small matrices are whole
    split = sum(4 * i * o / 8 for i, o in widths[:3]) + 4 * (256 * 2) + sum(4 * o for _, o in widths)
    assert report["bytes_parameters"] == 2 * split
    entry = report["updates"]["flow"]
    # forward and both gradients of every matrix (the first layer needs no gradient of its input), a device's share
    products = 2 * 256 / 8 * sum((2 if n == 0 else 3) * i * o for n, (i, o) in enumerate(widths))
    assert entry["flops"] == products
    assert entry["bytes_peak"] >= entry["bytes_temporary"] > 0
    assert not allocated
