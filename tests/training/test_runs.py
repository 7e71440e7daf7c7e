"""Whole runs through the command line: a kill at a random step, resuming, modes, and every kind of bad input."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
    "--config.network.width=16",
    "--config.sample.count=16",
    "--config.evaluation.count=100",
    "--config.writers.tensorboard=False",
]


def command(workdir, *arguments, config="configs/points.py:tiny", module="flowjax.main"):
    return [sys.executable, "-m", module, f"--config={config}", f"--workdir={workdir}", *arguments]


def environment(devices=1):
    # Eight devices share the machine's cores with other tests: one of them may come late to a collective.
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=60"
    flags = f"--xla_force_host_platform_device_count={devices} {patience}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def run(workdir, *arguments, devices=1, **options):
    return subprocess.run(
        command(workdir, *SMALL, *arguments, **options),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=600,
    )


def digest(workdir):
    """A hash of every array of the latest checkpoint, with its name."""
    import jax
    import orbax.checkpoint as ocp

    from flowjax.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    step = checkpoints.latest()
    with ocp.PyTreeCheckpointer() as reader:
        item = workdir / "checkpoints" / str(step) / "state"
        shapes = reader.metadata(item).item_metadata.tree
        restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        tree = reader.restore(item, restore_args=restore)
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        total.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    position = json.loads((workdir / "checkpoints" / str(step) / "position" / "metadata").read_text())
    return step, total.hexdigest(), position


# A constant rate, so that a shorter run is the beginning of a longer one.
LONG = [
    "--config.steps=400",
    "--config.optimizer.decay=constant",
    "--config.when.log.every_steps=7",
    "--config.when.checkpoint.every_steps=30",
    "--config.when.sample.at_percent=(100,)",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = run(workdir, *LONG)
    assert result.returncode == 0, result.stderr
    return workdir


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved_steps(workdir):
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())


def kill_9(workdir, target, *arguments, **options):
    """Starts a run and kills it once it has a checkpoint of the step, or a later one: how much later, the clock decides."""
    process = subprocess.Popen(
        command(workdir, *SMALL, *arguments, **options),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and max(saved_steps(workdir), default=0) < target:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert max(saved_steps(workdir)) >= target


def test_kill_9_and_resume_is_bit_identical(uninterrupted, tmp_path):
    """Killed twice, and started again with the same command."""
    workdir = tmp_path / "run"
    for target in (40, 200):
        kill_9(workdir, target, *LONG)
    seen = max(saved_steps(workdir))
    result = run(workdir, *LONG)
    assert result.returncode == 0, result.stderr
    assert "resuming from step" in result.stdout or seen == 400
    assert digest(workdir) == digest(uninterrupted)
    keep = lambda lines: [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
    assert keep(metrics(workdir)) == keep(metrics(uninterrupted))


def test_kill_9_of_a_policy_gradient_redraws_the_rollout_it_was_in(uninterrupted, tmp_path):
    """Four updates a rollout, and a checkpoint wherever one begins: what is lost of a period is drawn again, to the bit."""
    entries = ["steps=200", "method.updates=4", "when.checkpoint.every_steps=20", "when.log.every_steps=10"]
    tuning = [f"--config.{entry}" for entry in (*entries, "optimizer.decay=constant", "watchdog.largest_flat=None")]
    config = dict(config=f"configs/preference.py:tiny,run={uninterrupted}")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    kill_9(cut, 20, *tuning, **config)
    seen = max(saved_steps(cut))
    for folder in (whole, cut):
        result = run(folder, *tuning, **config)
        assert result.returncode == 0, result.stderr
    assert f"resuming from step {seen}" in result.stdout and seen < 200
    assert digest(cut) == digest(whole)
    names = ("step", "loss", "grad_norm", "ratio", "divergence", "collect/reward_right", "collect/spread")
    keep = lambda lines: [[line[name] for name in names] for line in lines if "loss" in line]
    assert keep(metrics(cut)) == keep(metrics(whole))


def test_sigterm_saves_and_the_same_command_goes_on(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir, *SMALL, *LONG),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not any(p.name.isdigit() for p in workdir.glob("checkpoints/*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 143, error
    assert "the same command goes on" in error
    assert json.loads((workdir / "status.json").read_text())["state"] == "stopped"
    assert run(workdir, *LONG).returncode == 0
    assert digest(workdir) == digest(uninterrupted)


def test_a_run_leaves_everything_a_person_needs(uninterrupted):
    files = {path.name for path in uninterrupted.iterdir()}
    assert {
        "config.json",
        "config_difference.txt",
        "metrics.jsonl",
        "by_time.jsonl",
        "status.json",
        "report.html",
    } <= files
    assert json.loads((uninterrupted / "status.json").read_text())["state"] == "finished"
    receipts = [json.loads(path.read_text()) for path in (uninterrupted / "receipts").glob("*.json")]
    assert {"sliced_w2", "sliced_w2_floor"} <= {receipt["metric"] for receipt in receipts}
    assert all(
        receipt["images_seen"] == 400 * 256 and str(uninterrupted) not in json.dumps(receipt) for receipt in receipts
    )
    assert [path.name for path in (uninterrupted / "samples").glob("*.png")] == ["00000400_default.png"]
    histogram = [json.loads(line) for line in (uninterrupted / "by_time.jsonl").read_text().splitlines()]
    assert sum(sum(line["count"]) for line in histogram) == 400 * 256


@pytest.mark.parametrize(
    "options",
    [
        dict(devices=8),
        dict(devices=8, arguments=["--config.sharding=zero3", "--config.gradient_accumulation=2"]),
        dict(devices=8, arguments=["--config.parallel=pmap"]),
    ],
    ids=["8 devices", "8 devices, zero3, accumulated", "8 devices, pmap"],
)
def test_one_and_eight_devices_agree(uninterrupted, tmp_path, options):
    """The same 21 steps: the losses of every log line agree with the one-device run."""
    short = ["--config.steps=21", *LONG[1:]]
    for attempt in range(3):
        workdir = tmp_path / f"run_{attempt}"
        result = run(workdir, *short, *options.get("arguments", []), devices=options["devices"])
        if "Termination timeout for `all reduce" not in result.stderr:  # XLA's threads have locked each other out: rare
            break
    assert result.returncode == 0, result.stderr
    ours, reference = metrics(workdir), metrics(uninterrupted)
    for line, expected in zip([m for m in ours if "loss" in m], [m for m in reference if "loss" in m][:3], strict=True):
        np.testing.assert_allclose(line["loss"], expected["loss"], rtol=1e-5)
        np.testing.assert_allclose(line["grad_norm"], expected["grad_norm"], rtol=1e-4)


def test_sample_and_eval_read_the_checkpoint(uninterrupted, tmp_path):
    result = run(uninterrupted, *LONG, "--mode=eval", "--count=64")
    assert result.returncode == 0 and "sliced_w2 " in result.stdout, result.stderr
    out = tmp_path / "samples.npz"
    result = run(uninterrupted, *LONG, "--mode=sample", "--count=20", f"--out={out}")
    assert result.returncode == 0, result.stderr
    assert np.load(out)["samples"].shape == (20, 2)


BAD = {
    "unknown key": (["--config.batch_sise=3"], 2, "Unknown config key 'batch_sise'", "Did you mean 'batch_size'"),
    "wrong type": (["--config.steps=many"], 2, "'steps' is 'many'", "expected int"),
    "unknown path": (["--config.path.name=liner"], 2, "Unknown path 'liner'", "Did you mean 'linear'"),
    "unknown path option": (["--config.path.beta=3"], 2, "The path 'linear' has no option 'beta'", ""),
    "unknown sampler": (["--config.samplers.default.name=hoin"], 2, "Unknown sampler 'hoin'", "heun"),
    "unknown evaluator": (["--config.evaluators.sliced_w2.name=slice"], 2, "Unknown evaluator 'slice'", ""),
    "batch that does not divide": (
        ["--config.batch_size=100", "--config.gradient_accumulation=8"],
        2,
        "batch_size=100",
        "multiple of 8",
    ),
    "missing dependency": (["--config.writers.wandb=True"], 2, "needs wandb", "pip install"),
    "unknown config": ([], 2, "No config file", "configs/points.py"),
    "another coupling": (["--config.coupling.name=ot"], 2, "Unknown coupling 'ot'", ""),
    "negative clip": (["--config.optimizer.clip_norm=-1"], 2, "clip_norm is -1", "must be positive"),
    "no such platform": (["--platform=gpu"], 2, "--platform=gpu", "not available here"),
    "negative seed": (["--config.seed=-1"], 2, "'seed' is -1", "at least 0"),
    "mesh that does not fit": (["--config.mesh.data=3", "--mode=plan"], 2, "needs a multiple of 3 devices", ""),
    "guidance without conditions": (["--config.samplers.default.guidance.name=cfg"], 2, "guidance", ""),
    "weak role that is not there": (
        ["--config.samplers.default.guidance.name=autoguidance", "--config.samplers.default.guidance.scale=2"],
        2,
        "weak",
        "Roles",
    ),
    "nothing to sample": (["--mode=sample"], 1, "There is no run in", "Train first"),
    "unknown mode": (["--mode=evaluate"], 2, "invalid choice: 'evaluate'", "replay"),
    "forgotten dashes": (["config.steps=3"], 2, "unknown option config.steps=3", "--config.key=value"),
    "another network's options": (
        ["--config.network.name=unet"],
        2,
        "has no option 'depth'",
        "replace the whole entry: --config.network=\"{'name': 'unet'}\"",
    ),
    "unknown data": (["--config.data.name=moon"], 2, "Unknown data source 'moon'", "Did you mean 'moons'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_one_clear_line_and_leaves_nothing(tmp_path, name):
    arguments, status, *expected = BAD[name]
    workdir = tmp_path / "run"
    options = dict(config="configs/point.py") if name == "unknown config" else {}
    result = run(workdir, *arguments, **options)
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("flowjax: "), result.stderr
    assert all(text in lines[0] for text in expected), lines[0]
    assert not workdir.exists() or not list(workdir.rglob("*"))


def test_an_unreadable_config_and_an_impossible_workdir_are_one_line_too(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(argument):\n    return defaults()\n")
    result = run(tmp_path / "run", config=str(broken))
    assert result.returncode == 2 and "fails at line 2: NameError: name 'defaults'" in result.stderr
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file")
    assert (
        result.returncode == 1 and len(result.stderr.strip().splitlines()) == 1 and "must be a folder" in result.stderr
    )


def test_a_workdir_is_of_one_run(uninterrupted):
    before = (uninterrupted / "config.json").read_text()
    other = run(uninterrupted, *LONG, "--config.seed=9", "--config.data.radius=3.0")
    assert other.returncode == 2 and "is of another run" in other.stderr and "seed: 0 then, 9 now" in other.stderr
    shorter = run(uninterrupted, *LONG, "--config.steps=100")
    assert shorter.returncode == 2 and "is at step 400, beyond steps=100" in shorter.stderr
    assert (uninterrupted / "config.json").read_text() == before


def test_a_finished_run_says_so(uninterrupted):
    before = digest(uninterrupted)
    again = run(uninterrupted, *LONG)
    assert again.returncode == 0 and "finished before, at step 400: nothing to do" in again.stdout, again.stderr
    assert digest(uninterrupted) == before


def test_measuring_again_replaces_the_receipts(uninterrupted):
    sets = []
    for _ in range(2):
        assert run(uninterrupted, *LONG, "--mode=eval").returncode == 0
        sets.append({path.name for path in (uninterrupted / "receipts").iterdir()})
    assert sets[0] == sets[1]


def test_a_nan_stops_the_run_with_a_dump_that_replays(tmp_path):
    workdir = tmp_path / "run"
    bad = [
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.clip_norm=None",
        "--config.optimizer.decay=constant",
    ]
    result = run(workdir, *bad)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("flowjax:")]
    assert len(lines) == 1 and "Training stopped at step" in lines[0] and "--mode=replay" in lines[0], result.stderr
    failure = json.loads((workdir / "failure" / "failure.json").read_text())
    assert failure["metrics"] and f"step {failure['step']}" in lines[0]
    assert json.loads((workdir / "status.json").read_text())["state"] == "failed"
    replayed = run(workdir, *bad, "--mode=replay")
    assert replayed.returncode == 0, replayed.stderr
    assert f"replaying step {failure['step']}" in replayed.stdout and "not finite" in replayed.stdout
    # another failure at the same step replaces the dump
    assert run(workdir, *bad, "--config.seed=5").returncode == 1
    assert json.loads((workdir / "failure" / "failure.json").read_text())["seed"] == 5
    again = run(workdir, *bad, "--config.seed=5", "--mode=replay")
    assert again.returncode == 0 and "not finite" in again.stdout, again.stderr


def test_a_corrupt_checkpoint_is_refused_with_the_way_out(uninterrupted, tmp_path):
    import shutil

    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    latest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    for path in (workdir / "checkpoints" / str(latest) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = run(workdir, *LONG, "--config.steps=500")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("flowjax:")]
    assert len(lines) == 1 and "cannot be read" in lines[0] and "delete that folder" in lines[0], result.stderr
