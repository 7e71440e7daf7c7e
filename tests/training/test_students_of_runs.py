"""Every student of configs/students.py is built on a finished run, and takes from it what it says."""

from functools import partial

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from flowjax.config import ConfigError, load, load_module
from flowjax.evaluation.receipts import read_receipts
from flowjax.main import main
from flowjax.methods.endpoints import make_follow
from flowjax.methods.students import make_student
from flowjax.models.stored import read_reference
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.run import Run
from flowjax.training.update import phase_gradients

CONFIG = load_module("configs/students.py")
QUIET = ["--config.writers.tensorboard=False", "--config.when.sample.at_percent=()"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students") / "teacher"
    assert main(["--config=configs/digits.py:tiny,network=dit", f"--workdir={folder}", *QUIET]) == 0
    return folder


@pytest.mark.parametrize("name", CONFIG.METHODS)
def test_every_student_fits_a_finished_run(teacher, name):
    asks = name in CONFIG.STUDENTS
    run = Run(load(f"configs/students.py:tiny,teacher={teacher},method={name},guidance=2.0"))
    theirs = load("configs/digits.py:tiny,network=dit")
    assert run.config.data == theirs.data and run.config.network.width == theirs.network.width
    told = "scales" in run.config.method
    if asks:
        assert run.config.method.teacher.guidance_scale == (1.0 if told else 2.0)
    adapted = "base" if run.config.lora.rank else "student"
    assert run.method.roles[adapted].restore_from == f"{teacher}:ema"
    assert not told or run.config.samplers.default.conditions.guidance == 2.0
    if name in ("ladd", "add", "dmd2_gan"):  # a head on each block, not patches
        heads = {f"head_{block}" for block in range(theirs.network.depth)}
        assert set(run.executor.abstract.params["discriminator"]) == heads
    # An adapter on the same network, traced forwards and back: the method's own loss on the sum of both.
    adapted = Run(load(f"configs/students.py:tiny,teacher={teacher},method={name},guidance=2.0,rank=2"))
    batch = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in next(run.iterator()).items()}
    batch["step"] = jax.ShapeDtypeStruct(batch["row"].shape, np.int32)
    params, key = adapted.executor.abstract.params, jax.random.key(0)
    for phase in adapted.method.phases.values():
        _, gradients, _ = jax.eval_shape(partial(phase_gradients, phase), params, batch, key)
        assert set(gradients) == set(phase.trains)
        if "student" in phase.trains:
            assert set(gradients["student"]["output"]["kernel"]) == {"down", "up"}
    for sampler in run.method.samplers.values():
        evaluations = 1 if asks else 2  # guidance costs a student of a guided teacher nothing
        assert sampler.description["nfe"] == evaluations * sampler.description["steps"]


@pytest.mark.parametrize("name, place, role", [
    ("direct", "distance", "perceptual"),
    ("rectified_flow_pp", "perceptual", "perceptual"),
    ("add", "discriminator", "features"),
])  # fmt: skip
def test_pictures_are_compared_and_judged_as_an_image_network_sees_them(teacher, name, place, role):
    config = f"configs/students.py:tiny,teacher={teacher},method={name}"
    assert role not in Run(load(config)).method.roles  # nothing that has to be downloaded unless asked for
    inside = "network." if role == "perceptual" else ""
    run = Run(load(f"{config},perceptual=efficientnet_lite0", [f"method.{place}.{inside}weights='random'"]))
    assert run.method.roles[role].tx is None and "stem" in jax.eval_shape(
        run.method.roles[role].init, jax.random.key(0)
    )
    if name == "direct":  # InstaFlow's second half begins with squared errors
        assert 0 < run.config.method.distance.squared_until < run.config.steps
    with pytest.raises(ConfigError, match="Unknown method with a distance of pictures 'boot'"):
        load(f"configs/students.py:tiny,teacher={teacher},method=boot,perceptual=efficientnet_lite0")


def test_an_adapter_that_learns_consistency_leaves_its_teacher_as_it_was(teacher, tmp_path):
    config = f"configs/students.py:tiny,teacher={teacher},method=latent_consistency_lora,rank=4"
    assert main([f"--config={config}", f"--workdir={tmp_path}", *QUIET]) == 0
    student, origin = (Checkpoints(folder / "checkpoints", read_only=True) for folder in (tmp_path, teacher))
    flat = lambda tree: {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    base, theirs = flat(student.read_role("base")), flat(origin.read_role("ema"))
    assert set(theirs) == set(base)
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(base[name], leaf)
    adapter = student.read_role("student")
    assert 0 < sum(leaf.size for leaf in jax.tree.leaves(adapter)) < 0.5 * sum(leaf.size for leaf in theirs.values())
    receipts = [r for r in read_receipts(tmp_path / "receipts") if r["metric"] == "frechet_ratio"]
    assert [r["nfe"] for r in receipts] == [1]


def test_a_small_student_starts_fresh_and_is_a_teacher_itself(teacher, tmp_path):
    config = f"configs/students.py:tiny,teacher={teacher},method=annealed_reflow,width=16"
    assert main([f"--config={config}", f"--workdir={tmp_path}", *QUIET]) == 0
    run = Run(load(f"configs/students.py:tiny,teacher={tmp_path},method=guided_direct"))
    assert run.config.network.width == 16 and run.method.roles["student"].restore_from == f"{tmp_path}:ema"
    count = lambda folder: sum(
        leaf.size for leaf in jax.tree.leaves(Checkpoints(folder / "checkpoints").read_role("ema"))
    )
    assert count(tmp_path) < count(teacher) / 2


@pytest.mark.parametrize("name", ["reflow", "rectified_flow_pp", "direct"])
def test_pairs_are_stored_once_for_all_students_of_a_teacher(teacher, tmp_path, name):
    config = f"--config=configs/students.py:tiny,teacher={teacher},method={name},guidance=2.0,pairs=48"
    assert main([config, "--mode=pairs"]) == 0
    assert main([config, f"--workdir={tmp_path}", *QUIET]) == 0
    run = Run(load(config.removeprefix("--config=")))
    assert run.method.roles["student"].restore_from == f"{teacher}:ema" and "teacher" not in run.method.roles
    online = load(f"configs/students.py:tiny,teacher={teacher},method=direct,guidance=2.0")
    master = make_student(online, run.source.spec, "direct", "velocity", online.method.teacher, "teacher").teacher
    follow, tree = make_follow(master, CONFIG.PAIR_STEPS, "midpoint"), read_reference(str(teacher), "The teacher")
    rows = jax.tree.map(jax.numpy.asarray, run.source.dataset(0, 1, 0, 12)[0])
    moved = follow({"teacher": tree}, rows["noise"], 0.0, 1.0, {"label": rows["label"]}) - rows["noise"]
    assert_allclose(rows["data"] - rows["noise"], moved, atol=2e-3 * float(abs(moved).max()))
    fresh = Run(load(config.removeprefix("--config=") + ",width=16,patch=4"))
    assert fresh.config.network.patch == 4 != run.config.network.patch
    # The same pairs, and it learns as its teacher did.
    assert fresh.config.data == run.config.data and fresh.method.roles["student"].restore_from is None
    theirs = load("configs/digits.py:tiny,network=dit").optimizer
    assert fresh.config.optimizer.learning_rate == theirs.learning_rate != run.config.optimizer.learning_rate


@pytest.mark.parametrize("name, message", [
    ("guided_direct", "asks its teacher between the ends"),
    ("direct_map", "asks its teacher between the ends"),
    ("boot", "Unknown method that takes stored pairs 'boot'"),
    ("mean_flow", "Unknown method that takes stored pairs 'mean_flow'"),
])  # fmt: skip
def test_pairs_are_for_students_that_read_them(teacher, name, message):
    with pytest.raises(ConfigError, match=message):
        load(f"configs/students.py:tiny,teacher={teacher},method={name},pairs=48")


def test_a_student_needs_a_teacher(teacher, tmp_path):
    with pytest.raises(ConfigError, match="goes on from its teacher's network. Leave it out"):
        load(f"configs/students.py:teacher={teacher},method=mean_flow,width=8")
    with pytest.raises(ConfigError, match="patch=2 is for a transformer that starts fresh"):
        load(f"configs/students.py:teacher={teacher},method=reflow,patch=2")
    with pytest.raises(ConfigError, match="Which run is the teacher"):
        load("configs/students.py")
    with pytest.raises(ConfigError, match="nowhere"):
        load(f"configs/students.py:teacher={tmp_path / 'nowhere'}")
