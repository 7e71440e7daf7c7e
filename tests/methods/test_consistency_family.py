"""Methods of the consistency family: they train from the command line in small, and refuse what would do nothing."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.config import defaults, load, load_module
from flowjax.contract import DataSpec
from flowjax.main import main
from flowjax.methods import METHODS
from flowjax.models.growth import grown

POINTS = DataSpec((2,), std=1.4)


def made(name, data=POINTS, two_times=False, changes=None, **options):
    config = defaults()
    config.network = dict(name="mlp", width=8, depth=1, two_times=two_times)
    for key, value in (changes or {}).items():
        config[key] = value
    return METHODS[name](config, data, **options)


def batch_of(count=8, step=0, **arrays):
    data = jax.random.normal(jax.random.key(5), (count, 2))
    ones = jnp.ones(count)
    return {"data": data, "row": jnp.arange(count), "mask": ones, "step": jnp.full(count, step, jnp.int32), **arrays}


def start(method, seed=0):
    """Parameters as a run begins with, without its checkpoints."""
    keys = jax.random.split(jax.random.key(seed), len(method.roles))
    params = {name: role.init(key) for (name, role), key in zip(method.roles.items(), keys) if role.init is not None}
    return params | {name: params[role.copy_of] for name, role in method.roles.items() if role.copy_of}


FAMILY = (
    "mean_flow", "consistency", "continuous_consistency", "shortcut", "moment_matching", "trajectory_consistency",
)  # fmt: skip
RUNS = [
    "improved_mean_flow",
    "shortcut_distillation",
    "moment_matching",
    "trajectory_consistency",
    "continuous_consistency_distillation",
    "consistency_training",
    "easy_consistency_tuning",
    "latent_consistency",
]
STUDENTS = load_module("configs/distillation.py").STUDENTS


@pytest.mark.parametrize("name", [name for name, entry in STUDENTS.items() if entry["method"]["name"] in FAMILY])
@pytest.mark.parametrize("weights", ["even", "uneven"])
def test_every_config_builds_and_gives_one_value_for_each_example(name, weights):
    config = load(f"configs/distillation.py:method={name},weights={weights}")
    labelled = config.data.get("labels", False)
    method = METHODS[config.method.name](
        config,
        DataSpec((2,), 8 if labelled else None, std=1.4),
        **{k: v for k, v in config.method.items() if k != "name"},
    )
    batch = batch_of(64, **({"label": jnp.arange(64) % 8} if labelled else {}))
    for phase in method.phases.values():
        value, metrics = jax.eval_shape(phase.loss, start(method), batch, jax.random.key(0))
        assert value.shape == (64,) and "t" in metrics
    assert "ema" in method.roles and method.samplers["default"].role == "ema"


@pytest.mark.parametrize("name", RUNS)
def test_a_tiny_run_ends_with_a_measured_student(tmp_path, name):
    arguments = [f"--config=configs/distillation.py:tiny,method={name}", f"--workdir={tmp_path}"]
    assert main([*arguments, "--config.writers.tensorboard=False"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    assert any("eval/sliced_w2_ratio" in line for line in lines)


def test_a_target_by_levels_follows_more_slowly_on_finer_grids():
    pairs = dict(name="grid", levels=dict(name="square_root"))
    method = made("consistency", pairs=pairs, target=dict(name="levels", decay=0.9), changes={"steps": 8_000})
    rates = method.roles["target"].track.rate(jnp.array([0, 7_999]))
    np.testing.assert_allclose(1 - rates, [0.9**2, 0.9 ** (2 / 150)], rtol=1e-5)


def test_consistency_targets_come_from_the_target_role_and_the_teacher_is_frozen():
    method = made("consistency", teacher=dict(name="mixture"), target=dict(name="constant", decay=0.95))
    params = start(method)
    loss = jax.jit(lambda params: jnp.sum(method.phases["consistency"].loss(params, batch_of(), jax.random.key(1))[0]))
    gradients = jax.grad(loss)({name: params[name] for name in ("student", "target", "teacher")})
    norm = lambda tree: sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))
    assert norm(gradients["student"]) > 0 and norm(gradients["target"]) == norm(gradients["teacher"]) == 0
    moved = {**params, "target": jax.tree.map(lambda leaf: leaf + 0.1, params["target"])}
    assert abs(loss(moved) - loss(params)) > 1e-4


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (dict(weight="gaps"), {}, "Did you mean 'gap'"),
        (dict(solver="euler"), {}, "there is none"),
        (dict(pairs=dict(name="ratio"), target=dict(name="levels")), {}, "Use pairs=dict\\(name='grid'"),
        (dict(), {"time": dict(name="logit_normal")}, "does not read it"),
        (dict(prediction="noise"), {}, "says nothing at the path's noisiest time"),
        (dict(start="teacher"), {}, "was given none"),
        (dict(scales=(1.0, 2.0)), {}, "it takes both or neither"),
        (
            dict(target=dict(name="constant")),
            {"ema": {"target": dict(name="constant")}},
            "Give the average another name",
        ),
    ],
)
def test_consistency_refuses(options, changes, message):
    with pytest.raises(ValueError, match=message):
        made("consistency", changes=changes, **options)


def size(tree):
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


def test_the_adversary_of_jumps_has_the_ratio_of_gradients_as_weight_and_plays_from_its_start_on():
    options = dict(teacher=dict(name="mixture"), solver_steps=1, two_times=True)
    plain = made("trajectory_consistency", **options)
    method = made("trajectory_consistency", adversarial_weight=0.5, adversarial_start=3, **options)
    shake = lambda leaf, key: leaf + 0.1 * jax.random.normal(key, leaf.shape)
    leaves, structure = jax.tree.flatten(start(method))
    params = jax.tree.unflatten(structure, map(shake, leaves, jax.random.split(jax.random.key(9), len(leaves))))
    key, student, game = jax.random.key(1), method.phases["trajectories"], method.phases["discriminator"]
    assert (student.start, game.start, game.trains) == (0, 3, ("discriminator",))
    own = lambda phase, layer, step: phase.loss(
        {**params, "student": {**params["student"], "output": layer}}, batch_of(step=step), key
    )
    layer = params["student"]["output"]
    without, early = own(plain.phases["trajectories"], layer, 2)[0], own(student, layer, 2)[0]
    np.testing.assert_allclose(early, without, rtol=1e-5)
    late, metrics = own(student, layer, 3)
    np.testing.assert_allclose(late - without, metrics["adversarial_weight"] * metrics["adversarial"], rtol=1e-3)
    slope = lambda name: size(jax.grad(lambda layer: own(student, layer, 3)[1][name].mean())(layer))
    expected = 0.5 * np.clip(slope("error") / slope("adversarial"), 0.01, 10.0)
    np.testing.assert_allclose(metrics["adversarial_weight"], expected, rtol=1e-3)

    gradients = jax.grad(lambda params: jnp.sum(game.loss(params, batch_of(step=3), key)[0]))(params)
    assert size(gradients["discriminator"]) > 0
    assert size({name: tree for name, tree in gradients.items() if name != "discriminator"}) == 0
    gradients = jax.grad(lambda params: jnp.sum(student.loss(params, batch_of(step=3), key)[0]))(params)
    assert size(gradients["discriminator"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(game="non_saturating"), "adversarial_weight is 0, so there is no discriminator"),
        (dict(adversarial_weight=-1.0), "no negative weight"),
        (dict(adversarial_weight=1.0, game="hing"), "Did you mean 'hinge'"),
        (dict(adversarial_weight=1.0, discriminator=dict(name="tokens")), "Unknown discriminator 'tokens'"),
        (dict(longest=0.0), "a share above 0"),
    ],
)
def test_trajectory_consistency_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        made("trajectory_consistency", teacher=dict(name="mixture"), two_times=True, **options)


def test_the_tangent_is_computed_in_float32_whatever_the_precision(monkeypatch):
    module = sys.modules["flowjax.methods.continuous_consistency"]  # the function of this name hides it
    seen = []
    tangent = module.flow_map_tangent
    monkeypatch.setattr(module, "flow_map_tangent", lambda *a, **k: seen.append(tangent(*a, **k)) or seen[-1])
    for precision in ("float32", "bfloat16"):
        method = made("continuous_consistency", warmup_steps=0, changes={"precision": precision})
        method.phases["consistency"].loss(start(method), batch_of(), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, *seen)


def test_the_warm_up_begins_with_flow_matching():
    method = made("continuous_consistency", warmup_steps=100, adaptive=False, constant=0.0)
    params, key = start(method), jax.random.key(1)
    loss = lambda params, step: jnp.sum(method.phases["consistency"].loss(params, batch_of(step=step), key)[0])
    gradient = lambda step: jax.jit(jax.grad(loss))({"student": params["student"]}, step)
    flat = lambda step: jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(gradient(step))])
    plain = made("flow_matching")
    reference = lambda params: jnp.sum(jnp.sqrt(2 * plain.phases["flow"].loss(params, batch_of(), key)[0]))
    expected = jax.grad(reference)({"student": params["student"]})
    # The tangent is the velocity's error over its size: the gradient of |p - v| / sqrt(D), twice (of a mean square).
    expected = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(expected)])
    np.testing.assert_allclose(flat(0), np.sqrt(2) * expected, rtol=1e-3, atol=1e-5)
    assert jnp.max(jnp.abs(flat(100) - flat(0))) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(prediction="data"), "does not keep the end in place"), (dict(warmup_steps=-1), "no negative number")],
)
def test_continuous_consistency_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        made("continuous_consistency", **options)


@pytest.mark.parametrize("name", ["shortcut", "moment_matching"])
def test_micro_batches_are_made_of_the_same_draws(name):
    """Two micro-batches of every other row have the losses that these rows have in the whole batch."""
    options = dict(share=0.5) if name == "shortcut" else dict(particles=2)
    method = made(name, two_times=True, **options)
    params, whole = start(method), batch_of()
    loss = jax.jit(lambda batch: method.phases[list(method.phases)[0]].loss(params, batch, jax.random.key(1))[0])
    halves = [loss({key: array[first::2] for key, array in whole.items()}) for first in (0, 1)]
    together = jnp.stack(halves, axis=1).reshape(-1)
    np.testing.assert_allclose(together, loss(whole), rtol=1e-5, atol=1e-6)


def test_guidance_reaches_the_shortest_jumps_alone():
    labelled = DataSpec((2,), 8, std=1.4)
    batch = batch_of(16, label=jnp.arange(16) % 8)
    value = {}
    for scale in (1.0, 3.0):
        options = dict(levels=2, share=1.0, judge=None, label_dropout=0.0)
        method = made("shortcut", labelled, True, guidance_scale=scale, **options)
        loss = jax.jit(method.phases["shortcut"].loss)
        value[scale], metrics = loss(start(method), batch, jax.random.key(1))
    changed = np.abs(value[3.0] - value[1.0]) > 1e-7
    on_half = np.isclose(metrics["t"], 0.5)  # jumps of half the path begin at 0 or 1/2; only their halves are steps
    assert changed[on_half].all() and changed.any() and not changed.all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shortcut", dict(share=1.5), "method.share is 1.5"),
        ("shortcut", dict(levels=0), "expected at least 1"),
        ("shortcut", dict(guidance_scale=2.0), "no condition to drop"),
        ("moment_matching", dict(particles=3), "Choose a divisor"),
        ("moment_matching", dict(step=1.0), "0 < step < 1"),
    ],
)
def test_two_time_methods_refuse(name, options, message):
    with pytest.raises(ValueError, match=message):
        made(name, two_times=True, **options)


def test_the_student_is_told_the_scale_of_the_teacher():
    labelled = DataSpec((2,), 8, std=1.4)
    network = dict(name="mlp", width=8, depth=1, guidance_conditional=True)
    teacher, batch = dict(name="mixture"), batch_of(8, label=jnp.arange(8))
    loss = {}
    for scale in (1.0, 3.0):
        options = dict(teacher=teacher, scales=(scale, scale), label_dropout=0.0)
        method = made("consistency", labelled, changes={"network": network}, **options)
        loss[scale] = jax.jit(method.phases["consistency"].loss)(start(method), batch, jax.random.key(1))[0]
    assert (np.abs(loss[3.0] - loss[1.0]) > 1e-7).all()
    with pytest.raises(ValueError, match="takes one with a condition to drop"):
        made("consistency", POINTS, changes={"network": network}, teacher=teacher, scales=(1.0, 2.0))
    with pytest.raises(ValueError, match="expected .lowest, highest., above 0"):
        made("consistency", labelled, changes={"network": network}, teacher=teacher, scales=(3.0, 2.0))
    with pytest.raises(ValueError, match="it takes both or neither"):
        made("consistency", labelled, changes={"network": network}, teacher=teacher)


def test_samplers_set_the_scale_of_guidance():
    labelled = DataSpec((2,), 8, std=1.4)
    network = dict(name="mlp", width=8, depth=1, guidance_conditional=True)
    jump = lambda **conditions: {"default": dict(name="consistency", steps=1, conditions=conditions)}
    keys, cond = jax.random.split(jax.random.key(2), 4), {"label": jnp.arange(4)}

    def drawn(**conditions):
        changes = {"network": network, "samplers": jump(**conditions)}
        method = made("consistency", labelled, changes=changes, teacher=dict(name="mixture"), scales=(1.0, 4.0))
        return method.samplers["default"].draw(start(method), cond, keys)

    assert jnp.max(jnp.abs(drawn(guidance=1.0) - drawn(guidance=3.0))) > 1e-4
    np.testing.assert_array_equal(drawn(guidance=1.0, label=3)[3], drawn(guidance=1.0)[3])
    with pytest.raises(ValueError, match="sets the condition 'guidence'.*Did you mean 'guidance'"):
        drawn(guidence=2.0)


def test_mean_flow_tells_its_network_the_scale_that_kappa_stands_for():
    labelled, batch = DataSpec((2,), 8, std=1.4), batch_of(8, label=jnp.arange(8))
    deaf = made("mean_flow", labelled, True, kappa=0.5, direction="own")
    network = dict(name="mlp", width=8, depth=1, two_times=True, guidance_conditional=True)
    told = made("mean_flow", labelled, True, {"network": network}, scales=(2.0, 2.0), direction="own")
    tree = start(deaf)["student"]
    larger = grown(start(told)["student"], tree)  # reads the scale, and does nothing with it yet
    key = jax.random.key(1)
    expected = jax.jit(deaf.phases["flow_map"].loss)({"student": tree}, batch, key)[0]
    loss = jax.jit(told.phases["flow_map"].loss)
    np.testing.assert_allclose(loss({"student": larger}, batch, key)[0], expected, rtol=1e-4)
    noisy = jax.tree.map(lambda leaf: leaf + 0.1, larger)
    other = made("mean_flow", labelled, True, {"network": network}, scales=(2.0, 3.0), direction="own")
    assert jnp.max(jnp.abs(jax.jit(other.phases["flow_map"].loss)({"student": noisy}, batch, key)[0])) > 0
    with pytest.raises(ValueError, match="leave omega, kappa"):
        made("mean_flow", labelled, True, {"network": network}, scales=(2.0, 3.0), kappa=0.5)
