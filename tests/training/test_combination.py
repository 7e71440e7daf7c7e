"""A combination of checkpoints: searched on one set of draws, judged on another, used by the other modes."""

import json

import numpy as np
import pytest

from flowjax.evaluation.receipts import read_receipts
from flowjax.main import main
from flowjax.models.ema import combine
from flowjax.training.checkpoints import Checkpoints

CONFIG = ["--config=configs/points.py:tiny"]
SET = [
    *("--config.steps=80", "--config.steps_per_dispatch=10", "--config.network.width=32", "--config.sample.count=16"),
    *("--config.checkpoint.keep_every_steps=20", "--config.when.checkpoint.every_steps=20"),
    *("--config.evaluation.count=256", "--config.evaluation.batch_size=256", "--config.writers.tensorboard=False"),
    *("--config.evaluators={'sliced_w2':{'name':'sliced_w2'}}", "--config.when.sample.at_percent=()"),
]


def run(*arguments):
    return main([*CONFIG, *SET, *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("combination") / "run"
    assert run(f"--workdir={folder}") == 0
    return folder


def values(folder, average):
    return [r["value"] for r in read_receipts(folder / "receipts") if (r["metric"], r["ema"]) == ("sliced_w2", average)]


def test_the_search_betters_averages_and_its_result_is_drawn_from(finished, capsys):
    folder = f"--workdir={finished}"
    assert run(folder, "--mode=combine", "--trials=60") == 0
    told = capsys.readouterr().out
    kept = json.loads((finished / "combination.json").read_text())
    assert kept["steps"] == [20, 40, 60, 80] and kept["role"] == "student" and kept["metric"] == "sliced_w2"
    assert sum(kept["coefficients"]) == pytest.approx(1)
    assert kept["value"] < 0.97 * kept["best_average"]  # steps of so short a run lead one way: extrapolation helps
    (judged,) = values(finished, "combination of 4")
    assert f"{judged:.5g}" in told and judged != kept["value"]  # other draws, other real points

    assert run(folder, "--mode=eval", "--combined") == 0
    (measured,) = values(finished, "combination")
    assert measured == pytest.approx(judged, rel=1e-5)
    checkpoints = Checkpoints(finished / "checkpoints", read_only=True)
    trees = [checkpoints.read_role("student", step) for step in kept["steps"]]
    first = combine(trees, np.array(kept["coefficients"]))["output"]["kernel"]
    by_hand = sum(c * np.asarray(tree["output"]["kernel"]) for c, tree in zip(kept["coefficients"], trees, strict=True))
    np.testing.assert_allclose(first, by_hand, rtol=1e-4, atol=1e-5)


def test_mistakes_are_told(finished, tmp_path, capsys):
    folder = f"--workdir={finished}"
    assert run(folder, "--mode=combine", "--metric=sliced_w3") == 2
    assert "Unknown metric 'sliced_w3'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(folder, "--mode=eval", "--combined", "--ema_std=0.1")
    assert "give one" in capsys.readouterr().err
    other = tmp_path / "other"
    one = [
        *CONFIG,
        *SET,
        "--config.checkpoint.keep_every_steps=0",
        "--config.checkpoint.keep_latest=1",
        f"--workdir={other}",
    ]
    one += ["--config.steps=20"]
    assert main(one) == 0
    assert main([*one, "--mode=sample", "--combined"]) == 2
    assert "There is no combination.json" in capsys.readouterr().err
    assert main([*one, "--mode=combine"]) == 2
    assert "a combination needs several" in capsys.readouterr().err
