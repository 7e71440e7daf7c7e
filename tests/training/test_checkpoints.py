"""Checkpoints: exact, onto any mesh, complete or not there, and clear about what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import host, regression, regression_batch, toy_config

from flowjax import disk
from flowjax.training.checkpoints import CheckpointError, Checkpoints
from flowjax.training.executors import JitExecutor, PmapExecutor


def trained(**changes):
    executor = JitExecutor(regression(optax.adam(1e-2)), toy_config(**changes))
    state, _ = executor.run(executor.start(), regression_batch(0, stack=1), ("fit",), 1)
    return executor, state


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    executor, state = trained(sharding="zero3")
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {"next_index": 7}, {"seed": 3})
    kept = host(state)
    # donating the state right after save must not change what is written
    executor.run(state, regression_batch(1, stack=1), ("fit",), 1)
    checkpoints.close()
    return folder, kept


@pytest.mark.parametrize(
    "changes", [{}, dict(sharding="zero1"), dict(sharding="zero3", mesh=dict(data=4, fsdp=2, tensor=1))]
)
def test_a_sharded_checkpoint_restores_onto_any_mesh(saved, changes):
    folder, kept = saved
    executor = JitExecutor(regression(optax.adam(1e-2)), toy_config(**changes))
    state, data = Checkpoints(folder, read_only=True).restore(1, executor.abstract)
    same(state, kept)
    assert data == {"next_index": 7}
    assert all(
        leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
        for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(executor.shardings))
    )


def test_it_restores_into_pmap(saved):
    folder, kept = saved
    executor = PmapExecutor(regression(optax.adam(1e-2)), toy_config(parallel="pmap"))
    state, _ = Checkpoints(folder, read_only=True).restore(1, executor.abstract)
    placed = executor.place(state)
    assert placed.params["student"]["w"].shape[0] == 8
    same(executor.logical(placed), kept)


def test_one_role_and_the_config_can_be_read_alone(saved):
    folder, kept = saved
    checkpoints = Checkpoints(folder, read_only=True)
    same(checkpoints.read_role("ema"), kept.params["ema"])
    assert checkpoints.config() == {"seed": 3}
    with pytest.raises(CheckpointError, match="no role 'emma'. Its roles: ema, student"):
        checkpoints.read_role("emma")


def test_what_does_not_fit_is_listed(saved):
    executor = JitExecutor(regression(optax.sgd(1e-3)), toy_config())
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(saved[0], read_only=True).restore(1, executor.abstract)
    assert "not in this run: optimizer/student/0/mu/w" in str(caught.value)
    wide = executor.abstract.replace(
        params={name: {"w": jax.ShapeDtypeStruct((65, 32), jnp.float32)} for name in ("student", "ema")}
    )
    with pytest.raises(
        CheckpointError, match=r"params/ema/w is \(64, 32\) in the checkpoint and \(65, 32\) in this run"
    ):
        Checkpoints(saved[0], read_only=True).restore(1, wide)


def test_a_half_written_checkpoint_is_never_picked_up(tmp_path):
    executor, state = trained()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {}, {})
    checkpoints.close()
    (tmp_path / "1").rename(tmp_path / "2.orbax-checkpoint-tmp-123")  # the name Orbax writes under until it is done
    again = Checkpoints(tmp_path)
    assert again.latest() is None
    again.save(2, state, {}, {})
    again.close()
    same(Checkpoints(tmp_path, read_only=True).restore(2, executor.abstract)[0], state)


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    executor, state = trained()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free", lambda place: size - 1)
        message = f"The disk is full: {size - 1:,} bytes free at {tmp_path}, and a checkpoint needs {size:,}"
        with pytest.raises(disk.DiskFull, match=message):
            checkpoints.save(1, state, {}, {})
    assert not list(tmp_path.iterdir())
    checkpoints.save(1, state, {}, {})
    checkpoints.close()
    same(Checkpoints(tmp_path, read_only=True).restore(1, executor.abstract)[0], state)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path, damage):
    executor, state = trained()
    checkpoints = Checkpoints(tmp_path, keep_latest=2)
    for step in (1, 2):
        checkpoints.save(step, state, {}, {})
    checkpoints.close()
    files = [path for path in (tmp_path / "2" / "state").rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) if damage == "truncate" else path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read .* delete that folder to resume from step 1"):
        Checkpoints(tmp_path, read_only=True).restore(2, executor.abstract)


def test_latest_best_and_every_nth_are_kept(tmp_path):
    _, state = trained()
    checkpoints = Checkpoints(tmp_path, keep_latest=1, keep_every_steps=4, best_metric="error", best_mode="min")
    for step, error in enumerate([3.0, 0.5, 2.0, 4.0, 1.0, 5.0], start=1):
        checkpoints.save(step, state, {}, {}, {"error": error})
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).steps() == [2, 4, 6]


def test_a_missing_step_lists_the_ones_there_are(saved):
    with pytest.raises(CheckpointError, match=r"no checkpoint 9 .*Steps: 1"):
        Checkpoints(saved[0], read_only=True).config(9)


def test_the_best_is_kept_by_a_run_that_was_resumed(tmp_path):
    _, state = trained()
    errors = {1: 3.0, 2: 0.5, 3: 2.0, 4: 4.0}
    for steps in ((1, 2), (3,), (4,)):  # each opens the folder anew, as a resumed run does
        checkpoints = Checkpoints(tmp_path, keep_latest=1, best_metric="error", best_mode="min")
        for step in steps:
            checkpoints.save(step, state, {}, {}, {"error": errors[step]})
        checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).steps() == [2, 4]
