"""The published tables follow from their receipts, and the experiments' scripts run."""

import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.config import load, load_module
from flowjax.evaluation import tables
from flowjax.evaluation.receipts import read_receipts
from flowjax.main import main
from flowjax.paths.oracles import ring
from flowjax.paths.path import make_path
from flowjax.training.run import Run

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted(ROOT.glob("experiments/*/README.md"))) if page.exists()]


def script(name: str, file: str = "run"):
    path = ROOT / "experiments" / name / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"experiment_{name}_{file}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def published(name: str) -> list[dict]:
    return read_receipts(ROOT / "experiments" / name / "receipts")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_those_of_the_receipts(page, capsys):
    assert tables.main([str(page), "--check"]) == 0, capsys.readouterr().out


def test_pictures_are_small():
    large = [picture for picture in ROOT.glob("experiments/*/*.png") if picture.stat().st_size > 300_000]
    assert not large


def test_spine_measures_the_samplers(tmp_path):
    assert script("spine").main(["--tiny", "--parts", "samplers", "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    orders = {receipt["sampler"]: receipt["value"] for receipt in receipts if receipt["metric"] == "order"}
    assert orders["euler"] == pytest.approx(1, abs=0.2)
    assert orders["heun"] == pytest.approx(2, abs=0.3)
    assert orders["rk4"] == pytest.approx(4, abs=0.3)
    assert (tmp_path / "published" / "samplers.png").exists()


def test_the_parser_is_measured(tmp_path):
    assert script("parser").main(["--tiny", "--parts", "accuracy", "speed", "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    read = {(r["side"], r["blur"], r["noise"]): r["value"] for r in receipts if r["part"] == "accuracy"}
    assert len(read) == 18 and read[32, 0.0, 0.0] >= 0.95 and read[64, 0.5, 8.0] >= 0.95
    speeds = {(r["work"], r["objects"]): r["value"] for r in receipts if r["part"] == "speed"}
    assert len(speeds) == 4 and min(speeds.values()) > 0


@pytest.mark.slow
def test_loading_is_measured_and_what_is_not_prepared_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path / "nothing"))
    parser = script("parser")
    parser.TRAINED = {name: parser.TRAINED[name] for name in ("shapes, 16 x 16", "emoji, 32 x 32")}
    assert parser.main(["--tiny", "--parts", "loading", "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    values = {(receipt["data"], receipt["work"]): receipt["value"] for receipt in receipts}
    given, taken, waited = (values.pop(("shapes, 16 x 16", work)) for work in ("given", "taken", "waited"))
    assert given > taken > 0 and 0 <= waited <= 1 and not values
    assert "emoji, 32 x 32: left out." in capsys.readouterr().out


@pytest.mark.parity
def test_comparisons_with_other_implementations_become_receipts(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("flow_matching")
    assert script("parity").main(["--tiny", "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    assert {receipt["what"] for receipt in receipts} >= {f"path {name}: conversions" for name in ("linear", "vp")}
    assert all(receipt["value"] <= receipt["tolerance"] and receipt["against"][-1].isdigit() for receipt in receipts)


def test_the_accelerators_config_is_one_of_its_own():
    with pytest.raises(ValueError, match="leave these options out"):
        load("configs/shapes.py:accelerator,resolution=32")
    config = load("configs/shapes.py:accelerator")
    assert config.data.objects == (1, 6) and config.data.resolution == 64 and config.data.words > 0


@pytest.mark.slow
def test_text_to_image_trains_and_measures(tmp_path):
    assert script("text_to_image").main(["--tiny", "--parts", "main", "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    of = lambda part: [receipt for receipt in receipts if receipt["part"] == part]
    assert {r["part"] for r in receipts} == {"main", "main_guidance", "main_distances", "progress"}
    assert {(r["split"], r["objects"]) for r in of("main")} == {(s, n) for s in ("test", "held_out") for n in (1, 2)}
    # The scale is chosen on other captions than those reported, and is the best of them.
    assert {r["captions_seed"] for r in of("main")}.isdisjoint(r["captions_seed"] for r in of("main_guidance"))
    scales = {r["guidance_scale"]: r["value"] for r in of("main_guidance")}
    assert {scales[r["guidance_scale"]] for r in of("main")} == {max(scales.values())} and len(scales) == 4
    assert all(0 <= r["value"] <= 1 and r["samples"] == 16 for part in ("main", "main_guidance") for r in of(part))
    floors = {r["metric"]: r["floor"] for r in of("main_distances") if "floor" in r}
    assert {"frechet", "kid", "precision", "recall"} <= set(floors) and floors["frechet"] > 0
    assert {"samples.png", "held_out.png"} <= {file.name for file in (tmp_path / "published").iterdir()}


@pytest.mark.slow
def test_students_of_pictures_are_measured_and_their_updates_timed(tmp_path):
    chosen = ["--only", "method=progressive*", "--parts", "fashion", "small"]
    arguments = ["--tiny", *chosen, "--work", str(tmp_path)]
    assert script("distillation", "images").main(arguments) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    values = {(r["part"], r["method"], r.get("steps"), r["metric"]): r["value"] for r in receipts}
    sizes = {r["method"]: r["parameters"] for r in receipts if r["part"] == "small"}
    assert sizes["small_reflow"] == sizes["small_slimflow"] == sizes["small_direct"] > 0
    assert sizes["small_slimflow"] < sizes["slimflow"] == sizes["reflow"]
    for method, steps in (("teacher", 1), ("teacher", 2), ("teacher", 4), ("progressive", 1)):
        figures = {metric for part, *case, metric in values if (part, *case) == ("fashion", method, steps)}
        about = {"frechet", "kid", "precision", "recall", "diversity", "class_accuracy", "seconds_per_image"}
        assert about <= figures and values["fashion", method, steps, "frechet"] > 0
        assert values["fashion", method, steps, "time_of_teacher"] > 0
    for method in ("teacher", "progressive"):
        assert values["fashion", method, None, "training_seconds"] > 0
        assert values["fashion", method, None, "training_mebibytes"] > 0.1
    # Two evaluations of the teacher and one of the student, of which one goes backwards: more than flow matching.
    assert 1 < values["fashion", "progressive", None, "time_of_flow_matching"] < 10
    published = tmp_path / "published"
    assert {"fashion.png", "small.png", "fashion_teacher.png"} <= {file.name for file in published.iterdir()}
    # What was measured is not measured again.
    written = {file: file.stat().st_mtime_ns for file in (published / "receipts").glob("*.json")}
    assert script("distillation", "images").main([*arguments[:4], "fashion", "--work", str(tmp_path)]) == 0
    assert written == {file: file.stat().st_mtime_ns for file in (published / "receipts").glob("*.json")}


@pytest.mark.slow
def test_students_are_trained_on_seeds_in_two_precisions(tmp_path):
    chosen = ["--only", "method=direct,weights=even*", "--parts", "stability"]
    distillation = script("distillation")
    distillation.SEEDS = distillation.SEEDS[:2]
    assert distillation.main(["--tiny", *chosen, "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    values = {(r["precision"], r["seed"]): r["value"] for r in receipts if r["metric"] == "sliced_w2_ratio"}
    assert len(values) == len(set(values.values())) == 4 and min(values.values()) > 0


def test_every_published_student_is_near_the_truth_in_one_step():
    receipts = published("distillation")
    ratio = {
        (r["weights"], r["method"]): r["value"]
        for r in receipts
        if (r["part"], r["metric"], r.get("steps")) == ("oracle", "sliced_w2_ratio", 1)
    }
    students = {name for _, name in ratio} - {"teacher"}
    assert students == set(load_module("configs/distillation.py").STUDENTS) - {"perflow"}  # which takes four
    for weights in ("even", "uneven"):
        bound = min(3.0, ratio[weights, "teacher"] / 5)
        assert all(ratio[weights, name] < bound for name in students)
        gain = {name: ratio[weights, "teacher"] - ratio[weights, name] for name in ("reflow", "annealed_reflow")}
        assert gain["annealed_reflow"] > 0.95 * gain["reflow"]  # with a quarter of the parameters


def test_published_students_of_pictures_gain_on_their_teachers_own_steps():
    receipts = published("distillation")
    figures = {(r["method"], r.get("steps"), r["metric"]): r["value"] for r in receipts if r["part"] == "fashion"}
    students = {name for name, _, _ in figures} - {"teacher"}
    assert students <= set(load_module("configs/students.py").METHODS)
    assert figures["teacher", 16, "class_accuracy"] > 0.9
    for name in students:
        first = min(steps for method, steps, _ in figures if method == name and steps)
        assert figures[name, first, "frechet"] < figures["teacher", first, "frechet"], name
        assert figures[name, first, "recall"] > figures["teacher", first, "recall"], name


def test_published_students_of_captions_gain_on_their_teachers_own_steps():
    receipts = published("distillation")
    found = [r for r in receipts if (r["part"], r["metric"]) == ("shapes", "frechet") and r["steps"] <= 4]
    teacher = {r["steps"]: r["value"] for r in found if r["method"] == "teacher"}
    students = {r["method"]: r for r in sorted(found, key=lambda r: -r["steps"]) if r["method"] != "teacher"}
    refused = {f"continuous_consistency_{kind}" for kind in ("distillation", "training")}  # the teacher predicts data
    assert set(students) == set(load_module("configs/students.py").METHODS) - refused
    for name, fewest in students.items():
        assert fewest["value"] < teacher[fewest["steps"]], name


@pytest.mark.parametrize("part", ["fashion", "shapes"])
def test_the_best_five_students_in_one_step_have_three_seeds(part):
    chosen = lambda r: (r["part"], r["metric"], r.get("steps")) == (part, "frechet", 1) and r["method"] != "teacher"
    seeds: dict[str, dict[int, float]] = {}
    for receipt in filter(chosen, published("distillation")):
        seeds.setdefault(receipt["method"], {})[receipt["seed"]] = receipt["value"]
    best = sorted(seeds, key=lambda method: np.mean(list(seeds[method].values())))[:5]
    assert {method: sorted(seeds[method]) for method in best} == {method: [0, 1, 2] for method in best}


def test_published_students_of_the_eight_modes_are_stable():
    receipts = published("distillation")
    ratio = {
        (r["precision"], r["seed"], r["method"]): r["value"]
        for r in receipts
        if (r["part"], r["metric"]) == ("stability", "sliced_w2_ratio")
    }
    runs = {(precision, seed) for precision, seed, _ in ratio}
    assert runs == {(precision, seed) for precision in ("float32", "bfloat16") for seed in range(3)}
    for precision, seed in runs:
        for method in load_module("configs/distillation.py").STUDENTS:
            assert ratio[precision, seed, method] < 3, (precision, seed, method)


def test_published_tuning_ends_near_the_most_there_is():
    measured = script("preference", "mixtures")
    receipts = published("preference")
    for reward in ("linear", "quadratic"):
        found = {(r["method"], r["seed"]): r for r in receipts if r.get("part") == reward}
        frontier = measured.frontier(reward)
        for method in ("dpo", "nft", "flow_grpo"):
            for seed in range(3):
                receipt = found[method, seed]
                assert receipt["value"] == pytest.approx(receipt["gain"] / np.interp(receipt["divergence"], *frontier))
                assert receipt["value"] > 0.95 and receipt["divergence"] > 0.3


def test_published_reward_models_tell_nearly_as_often_as_anybody_could():
    receipts = [r for r in published("preference") if r["metric"].startswith("comparison_accuracy")]
    found = {(r.get("data", r["part"]), r.get("loss", "pair"), r["metric"]): r["value"] for r in receipts}
    names = {(data, loss) for data, loss, _ in found}
    pictures = {(kind, "pair") for kind in ("style", "degraded", "caption", "features", "shapes_learned")}
    assert names == pictures | {("points", loss) for loss in ("pair", "tie", "ranking")}
    for name in names:
        assert found[*name, "comparison_accuracy"] > found[*name, "comparison_accuracy_best"] - 0.02, name


@pytest.mark.parametrize(
    ("method", "scenes"),
    [(m, s) for m in ("flow_grpo", "dance_grpo") for s in ("shapes", "shapes_32")] + [("learned", "shapes")],
)
def test_published_tuning_halves_the_error_of_two_objects(method, scenes):
    receipts = [r for r in published("preference") if r.get("part") in (f"{scenes}_first", f"{scenes}_{method}")]
    value = {(r["when"], r["metric"]): r["value"] for r in receipts if not r["guidance_scale"]}
    right = "caption_accuracy_2"
    assert 1 - value["tuned", right] <= (1 - value["before", right]) / 2
    assert abs(value["tuned", "frechet"] / value["before", "frechet"] - 1) <= 0.15
    assert abs(value["tuned", "watchdog_spread_kept"] - 1) <= 0.15


def test_a_published_quarter_of_the_parameters_keeps_most_of_the_gain():
    receipts = published("distillation")
    frechet = {
        r["method"]: r for r in receipts if (r["metric"], r.get("steps")) == ("frechet", 1) and r["part"] == "small"
    }
    (teacher,) = (
        r["value"]
        for r in receipts
        if (r["part"], r["method"], r["metric"], r.get("steps")) == ("fashion", "teacher", "frechet", 1)
    )
    assert frechet["small_slimflow"]["parameters"] <= frechet["slimflow"]["parameters"] / 4
    gain = {name: teacher - frechet[name]["value"] for name in ("small_slimflow", "slimflow")}
    assert gain["small_slimflow"] >= 0.85 * gain["slimflow"] > 0


def test_students_and_their_teacher_are_measured(tmp_path):
    chosen = ["--only", "method=progressive,weights=even*", "--parts", "oracle"]
    assert script("distillation").main(["--tiny", *chosen, "--workers", "1", "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    values = {(r["method"], r["steps"], r["metric"]): r["value"] for r in receipts}
    assert {(steps, metric) for method, steps, metric in values if method == "progressive"} == {
        (steps, metric)
        for steps in (1, 2, 4)
        for metric in ("sliced_w2_ratio", "mode_weight_error", "stray", "map_error")
    }
    # Each is that of the stage for so many steps.
    trained = {receipt["steps"]: receipt["step"] for receipt in receipts if receipt["method"] == "progressive"}
    assert trained == {4: 43, 2: 51, 1: 60}
    # Euler's error falls with its steps, and with as many as the reference it lands where that does.
    errors = [values["teacher", steps, "map_error"] for steps in (1, 2, 4, 400)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.01 < errors[0]
    assert values["progressive", 1, "map_error"] > errors[-1]


def test_a_student_told_labels_is_held_against_the_flow_of_its_label():
    measured, path, mixture = script("distillation"), make_path("linear"), ring()
    start = jax.random.normal(jax.random.key(0), (16, 2))
    label = jnp.arange(16) % 8
    ends = measured.trajectory_ends(mixture, path, start, label)
    np.testing.assert_allclose(ends, mixture.means[label] + 0.15 * start, atol=1e-4)
    run = Run(load("configs/distillation.py:method=latent_consistency,weights=uneven"))
    shares = np.bincount(measured.labels(run)["label"]) / 5000
    gap = np.abs(shares - run.source.oracle.weights)
    assert 0 < gap.max() < 4 * 0.5 * 5000**-0.5  # drawn, with the noise that draws have
    assert measured.labels(Run(load("configs/distillation.py:method=direct"))) == {}


def test_published_policies_are_near_the_best_there_is():
    receipts = published("control")
    values = {(r["task"], r["policy"], r["metric"], r["seed"]): r for r in receipts}
    for seed in range(3):
        before, after = (values["lqr", policy, "return", seed]["shortfall_percent"] for policy in ("cloned", "tuned"))
        assert after < 5 < 50 < before
        assert values["lqr", "tuned", "excess_percent", seed]["value"] < 2
        before, after = (values["pendulum", policy, "return", seed]["value"] for policy in ("cloned", "tuned"))
        assert before < -700 and after > -250
    assert 0 < values["lqr", "Riccati's gain", "return", 0]["shortfall_percent"] < 2


@pytest.mark.slow
def test_policies_are_cloned_tuned_and_measured(tmp_path):
    assert script("control").main(["--tiny", "--parts", "lqr", "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    returns = {receipt["policy"]: receipt["value"] for receipt in receipts if receipt["metric"] == "return"}
    starts = ("", ", from zero", ", with noise")
    assert {stage + start for stage in ("cloned", "tuned") for start in starts} < set(returns)
    assert max(returns, key=returns.get) == "the best there is" and returns["Riccati's gain"] > returns["tuned"]
    gains = {r["policy"]: r["value"] for r in receipts if r["metric"] == "gain_position"}
    assert gains["Riccati's gain"] > gains["cloned"]
    assert (tmp_path / "published" / "lqr.png").exists()


@pytest.mark.slow
def test_tuning_is_held_against_the_frontier(tmp_path):
    arguments = ["--tiny", "--parts", "linear", "--only", "nft", "--seeds", "0", "--work", str(tmp_path)]
    assert script("preference", "mixtures").main(arguments) == 0
    (file,) = (tmp_path / "published" / "receipts").glob("*.json")
    receipt = json.loads(file.read_text())
    assert receipt["method"] == "nft" and receipt["path"][-1] == [receipt["divergence"], receipt["gain"]]
    assert (tmp_path / "published" / "linear.png").exists()


@pytest.mark.slow
def test_pictures_are_tuned(tmp_path):
    arguments = ["--tiny", "--work", str(tmp_path), "--parts", "first", "flow_grpo"]
    assert script("preference", "shapes").main(arguments) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    seen = {(r["metric"], r["when"], r["guidance_scale"]) for r in receipts}
    assert {("frechet", "pretrained", None), ("frechet", "before", None), ("frechet", "before", 3.0)} <= seen
    assert {("frechet", "tuned", None), ("watchdog_spread_kept", "tuned", None)} <= seen
    careless = json.loads((tmp_path / "careless" / "config.json").read_text())
    assert careless["data"]["wrong"] == 0.3 and careless["restore"]["student"] == f"{tmp_path}/pretrained:ema"
    assert (tmp_path / "published" / "shapes_flow_grpo.png").exists()


@pytest.mark.slow
def test_tuning_is_timed(tmp_path):
    teacher = tmp_path / "teacher"
    assert main(["--config=configs/points.py:tiny", f"--workdir={teacher}", "--config.writers.tensorboard=False"]) == 0
    speed = script("preference", "speed")
    speed.CASES = {name: speed.CASES[name] for name in ("in JAX", "50 ms")}  # points have no captions to parse
    assert speed.main(["--tiny", "--teacher", str(teacher), "--work", str(tmp_path)]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "published" / "receipts").glob("*.json")]
    shares = {(r["rewards"], r["metric"]): r["value"] for r in receipts}
    assert shares["in JAX", "score_share"] == 0 < shares["50 ms", "score_share"] < shares["50 ms", "rollout_share"] < 1
    assert (
        0 < shares["in JAX", "mfu"] < 1 and min(shares["50 ms", f"{what}_rate"] for what in ("rollout", "update")) > 0
    )
    assert shares["in JAX", "time_ratio"] == 1 and shares["50 ms", "wait_share"] > 0
