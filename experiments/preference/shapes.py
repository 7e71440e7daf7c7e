"""Tuning a text-to-image flow by the parser, as a black box on the host.

    python experiments/preference/shapes.py [--parts flow_grpo ...] [--resolution 32] [--teacher RUN] [--tiny] [--work DIR]

    first, flow_grpo, flow_grpo_adam, dance_grpo, nft, dpo, best_of, refl, learned, offline, offline_kto,
    offline_best, hacked

The flow is trained first (configs/shapes.py, 16 x 16 or 32 x 32), and then for a while on captions of which three in ten are
another scene's, as many of the web's are: what it knows of captions is drowned in what it was told wrongly. `--teacher` names
another finished run. Each part goes on from it with configs/preference.py, under captions of two objects. What it has become is
held against what it was (`first`: also under guidance, which is the other remedy), on the same new captions and from the same
noise:

    caption_accuracy_2    wholly right, by the parser
    comparison_accuracy   of a learnt judge, and the best there can be
    frechet               distance of EfficientNet features to real pictures
    watchdog_...          the last figures of the run's watchdog: spread_kept is the mean distance of pictures of one caption,
                          over that of the first model

`best_of` is tuned on the best of four draws of the first model, which every other method has to beat. `refl` follows the
gradient of brightness, a reward that it can differentiate. `learned` knows no parser either: its reward is a model of what
people like, here of comparisons that lose now and then, of which the better picture fits its caption better. A folder of such
comparisons is all that the `offline` ones have, without any draw of their own: DPO, KTO, for which pictures are good or bad one
by one, and training on the better ones alone. `hacked` has no divergence in its loss and is paid for bright pictures: the
watchdog, which reads captions, has to end it.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowjax.data import compare, compared_shapes
from flowjax.data.comparisons import FILE
from flowjax.evaluation import pictures, run_files
from flowjax.evaluation.experiment import last_receipts, run_parts, train
from flowjax.evaluation.receipts import replace_receipts
from flowjax.methods.finished import config_of_run
from flowjax.training.conditions import drawn_under
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators

COUNT = 1_000  # captions of an evaluation
FEATURES = dict(name="efficientnet_lite0", layer="b10", input_size=64)
METRICS = ("caption_accuracy_2", "frechet")
GUIDANCE = (1.5, 3.0)  # of the first model
GRID = dict(name="uniform")
SAMPLER = dict(name="heun", steps=16, grid=GRID, role="ema")
SHOWN = 8  # captions in a picture
TEACHER = "configs/shapes.py:network=small,resolution={}"
LARGE = ("--config.data.sizes=('large',)",)  # the same at every resolution
SCENES = (*LARGE, "--config.data.loose=0.0")
# Resolution -> updates and rate of both trainings. Who is told wrongly has to read noisy pictures for themselves, which takes
# long to learn at 32 x 32; until then kinds are a blend of the two, which tuning did not mend.
PRETRAINING = {16: ("--config.steps=8000",), 32: ("--config.steps=16000",)}
CARELESS = {16: ("--config.steps=1200", "--config.optimizer.learning_rate=5e-3"), 32: ("--config.steps=8000",)}
WRONG = "--config.data.wrong=0.3"
FEW, FALLING = {"method.rollout.steps": 8}, {"optimizer.decay": "cosine"}
# Most of a policy's gradient is noise, along which Adam goes far: it draws as well, and further from real pictures.
NATURAL = dict(name="natural", learning_rate=3e-3, warmup_steps=3, decay="cosine", b1=0.95)
POLICY = FEW | {"optimizer": NATURAL}
# part -> argument of the config, overrides, and updates.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "flow_grpo": ("method=flow_grpo,reward=scene,hold=0.03", POLICY, 90),
    "flow_grpo_adam": ("method=flow_grpo,reward=scene,hold=0.04", FEW | FALLING, 80),
    # A group shares its first noise and differs by little: more noise on the way, more groups, and longer steps.
    "dance_grpo": (
        "method=dance_grpo,reward=scene,hold=0.04",
        POLICY | {"method.rollout.eta": 0.45, "method.group_size": 8, "optimizer": NATURAL | dict(learning_rate=8e-3)},
        90,
    ),
    "nft": (
        "method=nft,reward=scene,hold=0.03",
        FALLING | {"method.adaptive": False, "optimizer.learning_rate": 1e-4},
        60,
    ),
    "dpo": ("method=dpo,reward=scene,hold=0.2", FALLING | {"optimizer.learning_rate": 1e-4}, 60),
    "best_of": ("method=best_of,reward=scene", FALLING | {"optimizer.learning_rate": 1e-4}, 120),
    "refl": ("method=refl,reward=brightness", FALLING | {"optimizer.learning_rate": 3e-5}, 40),
    "learned": ("method=flow_grpo,reward={judge},hold=0.06", POLICY, 60),
    "offline": ("method=dpo,data={compared},hold=1", FALLING | {"optimizer.learning_rate": 1e-4}, 300),
    "offline_kto": (
        "method=kto,data={compared},hold=1",
        FALLING | {"optimizer.learning_rate": 1e-4, "data.examples": 1},
        300,
    ),
    "offline_best": ("method=best_of,data={compared}", FALLING | {"optimizer.learning_rate": 1e-4}, 300),
    "hacked": ("method=flow_grpo,reward=brightness,hold=0,held=scene", FEW, 60),
}
# resolution -> part -> what is otherwise there. A group of larger pictures that share their noise goes further from the first
# model for the same reward.
OTHER: dict[int, dict[str, tuple[str, dict[str, Any], int]]] = {
    32: {
        "flow_grpo": ("method=flow_grpo,reward=scene,hold=0.06", POLICY, 60),
        "dance_grpo": (
            "method=dance_grpo,reward=scene,hold=0.015",
            CASES["dance_grpo"][1] | {"optimizer": NATURAL | dict(learning_rate=1e-2)},
            90,
        ),
    }
}
COMPARED = 4_000  # comparisons of a folder
WATCH = {"watchdog.count": 128, "watchdog.steps": 10}
QUIET = (
    "--config.evaluators={}",
    "--config.writers.tensorboard=False",
    "--config.when.sample.at_percent=(100,)",
    "--config.when.evaluate.at_percent=(10, 25, 50, 75, 100)",
)


def part(name: str) -> Callable[[argparse.Namespace], None]:
    """The part of one case."""

    def run(options: argparse.Namespace) -> None:
        argument, changes, updates = OTHER.get(options.resolution, {}).get(name, CASES[name])
        made = {what: make(options) for what, make in MADE.items() if f"{{{what}}}" in argument}
        argument = f"run={teacher(options)},{argument.format(**made)},updates={updates}"
        argument += ",tiny" if options.tiny else ""
        own = dict(changes) if options.tiny else {**changes, **WATCH}
        if not options.tiny and "compared" not in made:  # whose folder has them already
            own["data.objects"] = (2, 2)
        config = f"{options.root}/configs/preference.py:{argument}"
        overrides = [f"{key}={value!r}" for key, value in own.items()]
        work = options.work / named("shapes", options) / name
        if not ended_by_watchdog(work):
            try:
                train(options.root, config, work, *(f"--config.{change}" for change in overrides), *QUIET)
            except RuntimeError:
                if not ended_by_watchdog(work):
                    raise
        look = Look(work, options.tiny)
        receipts = [*look.measured(), *watched(work)]
        if "judge" in made:
            receipts += [r for r in last_receipts(made["judge"]) if r["metric"].startswith("comparison_accuracy")]
        about = dict(method=name, when="tuned")
        published = f"{named('shapes', options)}_{name}"
        replace_receipts(options.out / "receipts", published, [{**receipt, **about} for receipt in receipts])
        pictures.save_png(options.out / f"{published}.png", look.picture("watchdog_reference", "ema"))

    return run


def named(what: str, options: argparse.Namespace) -> str:
    """A name for what is of this resolution: its own, but for 16."""
    return what if options.resolution == 16 else f"{what}_{options.resolution}"


def teacher(options: argparse.Namespace) -> pathlib.Path:
    """The run that is tuned, trained unless it is finished or another is named."""
    if options.teacher is not None:
        return options.teacher.absolute()
    pretrained, careless = (options.work / named(stage, options) for stage in ("pretrained", "careless"))
    config = TEACHER.format(options.resolution) + (",tiny" if options.tiny else "")
    first, second = ((), ()) if options.tiny else (PRETRAINING[options.resolution], CARELESS[options.resolution])
    train(options.root, config, pretrained, *SCENES, *first)
    train(options.root, config, careless, *SCENES, WRONG, *second, f"--config.restore.student={pretrained}:ema")
    return careless


def judge(options: argparse.Namespace) -> pathlib.Path:
    """A model of which of two scenes of two objects fits its caption better."""
    work = options.work / named("judge", options)
    config = f"configs/reward_model.py:data=shapes,size={options.resolution}{',tiny' if options.tiny else ''}"
    train(options.root, config, work, "--config.data.objects=(2, 2)", *LARGE, "--config.writers.tensorboard=False")
    return work


def compared(options: argparse.Namespace) -> pathlib.Path:
    """A folder of such comparisons."""
    folder, count = options.work / named("compared", options), 80 if options.tiny else COMPARED
    if not (folder / FILE).exists():
        scenes = dict(resolution=options.resolution, objects=(2, 2), sizes=("large",), temperature=0.5)
        compare.write_comparisons(compared_shapes(**scenes), folder, count)
    return folder


MADE = {"judge": judge, "compared": compared}  # what the argument of a case names in braces


def first(options: argparse.Namespace) -> None:
    """What is there before any tuning: with guidance and without, and before careless captions."""
    careless = teacher(options)
    looks = {"before": Look(careless, options.tiny, GUIDANCE)}
    if options.teacher is None:
        looks["pretrained"] = Look(options.work / named("pretrained", options), options.tiny)
    receipts = [{**receipt, "when": when} for when, look in looks.items() for receipt in look.measured()]
    replace_receipts(options.out / "receipts", f"{named('shapes', options)}_first", receipts)


class Look:
    """What a finished run draws under captions of two objects: the same ones from the same noise, whichever run it is."""

    def __init__(self, work: pathlib.Path, tiny: bool, guidance: Sequence[float] = ()):
        config = config_of_run(str(work), "What is looked at")
        if config.data.name != "shapes":
            # It learnt from a folder. It is asked for scenes as the others are, and as if it drew its own.
            config.data = config_of_run(config.restore.student, "What it was").data
            config.method.rewards, config.method.rollout = dict(right=dict(name="scene")), dict(name="heun", steps=2)
        if not tiny:
            config.data.objects = (2, 2)
        config.samplers = {
            "drawn": dict(SAMPLER, guidance=dict(name="none")),
            **{
                f"guided_{i}": dict(SAMPLER, guidance=dict(name="cfg", scale=scale)) for i, scale in enumerate(guidance)
            },
        }
        count, features = (16, dict(name="identity")) if tiny else (COUNT, FEATURES)
        config.evaluation = dict(count=count, batch_size=min(count, 250))
        config.evaluators = dict(
            captions=dict(name="caption_accuracy"), frechet=dict(name="frechet", features=features)
        )
        self.run = Run(config, work)
        self.state, self.drawer = self.run.latest_state(), Drawer(self.run)

    def measured(self) -> list[dict[str, Any]]:
        """A receipt for each metric and sampler."""
        evaluators, step = make_evaluators(self.run), int(self.state.step)
        seconds = run_files.seconds_until(self.run.workdir, step, "training_seconds")
        found = []
        for sampler in self.run.method.samplers:
            values, receipts = evaluate(self.run, self.drawer, evaluators, self.state.params, step, sampler, seconds)
            print(sampler, {name: round(values[name], 4) for name in METRICS if name in values}, flush=True)
            found += [receipt for receipt in receipts if receipt["metric"] in METRICS]
        return found

    def picture(self, *roles: str) -> np.ndarray:
        """A row of samples for each role."""
        conditions = drawn_under(self.run, "drawn", SHOWN)
        rows = [
            self.drawer.draw(
                {**self.state.params, "ema": self.state.params[role]}, "drawn", conditions, SHOWN, "evaluation", SHOWN
            )
            for role in roles
        ]
        captions = self.run.source.tokenizer.decode(conditions["tokens"])
        return pictures.captioned_grid(np.concatenate(rows), captions * len(rows), columns=SHOWN)


def ended_by_watchdog(work: pathlib.Path) -> str:
    """Why the watchdog has ended a run; empty where it has not."""
    status = run_files.read_json(work / run_files.STATUS) or {}
    message = status.get("message", "")
    return message if status.get("state") == "stopped" and "watchdog" in message else ""


def watched(work: pathlib.Path) -> list[dict[str, Any]]:
    """What the watchdog saw last, and of a run that it ended, why."""
    reason = ended_by_watchdog(work)
    ended = dict(ended=reason) if reason else {}
    return [{**receipt, **ended} for receipt in last_receipts(work)]


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment alone."""
    parser.add_argument("--resolution", type=int, choices=(16, 32), default=16, help="of the scenes")
    parser.add_argument(
        "--teacher", type=pathlib.Path, help="a finished run that is tuned in place of the script's own"
    )


PARTS = {"first": first, **{name: part(name) for name in CASES}}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, more)


if __name__ == "__main__":
    sys.exit(main())
