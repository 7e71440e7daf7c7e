"""Stored pairs: made by a mode, they are the teacher's own, resume to the same bytes, refuse another teacher, and train."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.config import ConfigError, load
from flowjax.data.pairs import Origins
from flowjax.data.points import mixture
from flowjax.main import main
from flowjax.paths.ode import solve
from flowjax.paths.oracles import GaussianMixture, ring
from flowjax.paths.path import make_path
from flowjax.training.pairs import make_pairs
from flowjax.training.run import Run

TINY = ["config.steps=4", "config.network.width=8", "config.writers.tensorboard=False", "config.batch_size=16"]


def config_of(folder, *overrides, method="reflow", **changes):
    options = dict(
        source=dict(name="mixture", labels=True), teacher=dict(name="mixture"), count=600, steps=8, **changes
    )
    data = dict(name="pairs", folder=str(folder), **options)
    return load(
        "configs/distillation.py:tiny,method=reflow",
        [
            f"data={data}",
            "coupling=dict(name='stored')",
            f"method=dict(name='{method}')",
            "time=dict(name='uniform')",
            *(item.removeprefix("config.") for item in (*TINY, *overrides)),
        ],
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "forwards"
    return make_pairs(config_of(folder))


def test_pairs_are_where_the_flow_of_the_label_leads(made):
    arrays = made.arrays("train")
    assert set(arrays) == {"data", "noise", "label"} and len(arrays["data"]) == 600
    noise, data, label = (jnp.asarray(arrays[name][:40]) for name in ("noise", "data", "label"))
    exact, path = ring(), make_path("linear")
    known = GaussianMixture(exact.weights, exact.means, exact.stds, jnp.arange(8))
    end = solve(lambda x, t: known.prediction(path, "velocity", x, t, label), noise, 0.0, 1.0, 8)
    np.testing.assert_allclose(data, end, atol=2e-4)
    # Noise is normal and new in every row; each sample lies near the mode that its label asked for.
    assert abs(arrays["noise"].mean()) < 0.1 and arrays["noise"].std() == pytest.approx(1, abs=0.06)
    assert len(np.unique(arrays["noise"])) == 1200
    assert np.linalg.norm(np.asarray(arrays["data"]) - np.asarray(exact.means)[arrays["label"]], axis=1).max() < 1.0


def test_rows_do_not_depend_on_how_they_are_read():
    origins = Origins(mixture(labels=True), 100, 3, 0.25)
    whole = origins.examples("train", 0, 100)
    for first, last in ((0, 7), (7, 40), (40, 100)):
        for name, value in origins.examples("train", first, last).items():
            np.testing.assert_array_equal(value, whole[name][first:last])
    assert whole["backwards"].sum() == 25
    real = np.linalg.norm(whole["data"], axis=1)
    assert abs(real[whole["backwards"]] - 2).max() < 0.8  # on the ring
    assert origins.fingerprint() != Origins(mixture(labels=True), 100, 4, 0.25).fingerprint()


def test_real_examples_go_back_to_their_noise(tmp_path):
    made = make_pairs(config_of(tmp_path / "back", "config.evaluation.batch_size=100", real=1.0))
    arrays = {name: np.asarray(value) for name, value in made.arrays("train").items()}
    source = mixture(labels=True)
    np.testing.assert_array_equal(arrays["data"], source.dataset(0, 1, 0, 600)[0]["data"])
    assert arrays["noise"].mean() == pytest.approx(0, abs=0.15) and arrays["noise"].std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(teacher=dict(name="mixture", weights="uneven")), "encoder.teacher"),
        (dict(teacher=dict(name="mixture", guidance_scale=2.0)), "encoder.teacher"),
        (dict(solver="heun"), "encoder.solver"),
        (dict(steps=9), "encoder.steps"),
        (dict(pair_seed=1), "source.content"),
        (dict(source=dict(name="mixture", labels=True, weights="uneven")), "source.content"),
    ],
)
def test_pairs_of_another_teacher_are_refused_with_the_reason(made, changes, named):
    config = config_of(made.folder)
    with config.unlocked():
        config.data.update(changes)
    with pytest.raises(ConfigError, match=f"was made with another .*{named}"):
        Run(config).source  # noqa: B018 - building it is what is tested
    with pytest.raises(ConfigError, match="was made with another"):
        make_pairs(config)


@pytest.mark.parametrize("method", ["reflow", "direct"])
def test_students_are_trained_on_pairs_and_judged_by_real_examples(made, tmp_path, method):
    folder = made.folder
    teacher = "dict(name='mixture')"
    data = f"dict(name='pairs',folder='{folder}',source=dict(name='mixture',labels=True),teacher={teacher},count=600,steps=8)"
    arguments = [
        "--config=configs/distillation.py:tiny,method=direct",
        f"--workdir={tmp_path}",
        f"--config.data={data}",
        "--config.coupling=dict(name='stored')",
        f"--config.method=dict(name='{method}')",
        *("--" + item for item in TINY),
    ]
    assert main([*arguments, "--mode=pairs"]) == 0  # they are there: nothing is done
    assert main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    assert any("eval/sliced_w2_ratio" in line for line in lines)


def test_what_is_not_there_or_does_not_fit_is_said(tmp_path, capsys):
    with pytest.raises(ConfigError, match="There are no pairs at .*Make them with --mode=pairs"):
        Run(config_of(tmp_path / "none")).source  # noqa: B018
    with pytest.raises(ConfigError, match="Make them the same"):
        make_pairs(config_of(tmp_path / "none", path=dict(name="vp")))
    with pytest.raises(ConfigError, match="count=0"):
        make_pairs(config_of(tmp_path / "none", "config.data.count=0"))
    assert main(["--config=configs/points.py:tiny", f"--workdir={tmp_path}", "--mode=pairs"]) == 2
    assert "config.data is 'mixture'" in capsys.readouterr().err
