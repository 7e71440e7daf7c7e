"""Students of few steps of pictures: every method of configs/students.py on one teacher, at one budget.

    python experiments/distillation/images.py [--tiny] [--parts fashion shapes small instaflow] [--only PATTERN ...]

    fashion    the teacher is configs/fashion.py (python -m flowjax.data.prepare fashion_mnist), its students are networks of
               its own size that see equally many images
    shapes     the same for text to image: the teacher is configs/shapes.py:network=small with its guidance, which students
               fold in; measured on EfficientNet's features (python -m flowjax.data.prepare efficientnet_lite0)
    small      SlimFlow on Fashion-MNIST: students of a quarter of the parameters and of all, on stored pairs of the teacher;
               and a small one without the first half
    instaflow  InstaFlow on Fashion-MNIST: a round of reflow, and one step from there by pixels or by EfficientNet's features

Students are trained and measured one after the other: what was done stands when this is stopped. At each of a student's
samplers, and of the teacher with as many steps of Euler and as it is meant, there are

    frechet, kid, precision, recall, diversity     of features; the floor of each is what real pictures get
    class_accuracy or caption_accuracy             does a sample show what was asked for?
    seconds_per_image, time_of_teacher             sampling, and its ratio to the teacher's own, timed beside it in this process

and of its training

    update_seconds, time_of_flow_matching          an update, and its ratio to one of flow matching, timed beside it
    training_seconds, training_mebibytes           by the run's own clock; what the compiler says that an update needs

`--seeds 0 1 2 --only "method=mean_flow*"` repeats what it names. `--teacher DIR` takes a finished run as the teacher of the
one part that is named. Finished runs are not trained again, nor measured again while their receipts are there. `--tiny` does a
little of everything, on small pictures, and writes to the work folder. Many of the programs are the same: with
JAX_COMPILATION_CACHE_DIR=DIR each is compiled once.
"""

import argparse
import dataclasses
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import jax
import numpy as np

from flowjax.config import ConfigDict, ConfigError, load, load_module
from flowjax.evaluation import pictures, run_files, tables
from flowjax.evaluation.experiment import publish_picture, run_module, run_parts, train
from flowjax.evaluation.receipts import config_hash, read_receipts, replace_receipts
from flowjax.methods.finished import config_of_run
from flowjax.training.conditions import drawn_under
from flowjax.training.measured import receipt_of
from flowjax.training.plan import plan as needs
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators

STUDENTS = "configs/students.py"
STEPS = (1, 2, 4)  # of the teacher, by Euler
ROUNDS = 5  # of timed updates and samples
SEEDS = range(8)  # that may be trained
BATCH = 250  # samples that are drawn at once, and timed
SHOWN = 10  # samples of a row of the gallery
# Runs are measured here and not by themselves; one update a dispatch is the program that the plan asks the compiler about.
QUIET = ("when.evaluate.at_percent=()", "writers.tensorboard=False")
UNMEASURED = (*QUIET, "evaluators={}", "when.sample.at_percent=()", "steps_per_dispatch=1")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What students are compared on.

    Attributes:
      teacher: the config of the teacher.
      tiny: the one in its place for `--tiny`.
      guidance: the scale that the teacher is measured with and its students take over; those that learn from data alone are
        sampled with it.
      steps: of a student.
      batch_size: of a student.
      features: of the distances: spec of flowjax.evaluation.judging.FEATURES.
      accuracy: the evaluator that looks whether a sample shows what was asked for.
      count: samples that are measured.
    """

    teacher: str
    tiny: str
    guidance: float
    steps: int
    batch_size: int
    features: Mapping[str, Any]
    accuracy: str
    count: int

    @property
    def judged(self) -> tuple[str, ...]:
        """The metrics that are kept."""
        return ("frechet", "kid", "precision", "recall", "diversity", self.accuracy)

    def measures(self, tiny: bool) -> dict[str, Any]:
        """How samples are measured, as entries of a config."""
        features = dict(name="identity") if tiny else dict(self.features)
        count = 80 if tiny else self.count
        accuracy = dict(name=self.accuracy)
        if self.accuracy == "class_accuracy":
            accuracy["features"] = "auto" if tiny else features
        evaluators = dict(
            frechet=dict(name="frechet", features=features),
            kid=dict(name="kid", features=features, subset_size=count // 4),
            precision_recall=dict(name="precision_recall", features=features),
            diversity=dict(name="diversity", features=features),
            accuracy=accuracy,
        )
        return dict(evaluation=dict(count=count, batch_size=min(count, BATCH)), evaluators=evaluators)


FASHION = Subject(
    teacher="configs/fashion.py",
    tiny="configs/digits.py:tiny,network=dit",
    guidance=1.5,
    steps=1_000,
    batch_size=32,
    features=dict(name="fashion_mnist"),
    accuracy="class_accuracy",
    count=2_000,
)
SHAPES = Subject(
    teacher="configs/shapes.py:network=small",
    tiny="configs/shapes.py:tiny,network=small",
    guidance=1.5,
    steps=1_000,
    batch_size=32,
    features=dict(name="efficientnet_lite0", layer="b10", input_size=64),
    accuracy="caption_accuracy",
    count=2_000,
)
# Less than a quarter of the parameters of the teacher of Fashion-MNIST. Its patches of 7 x 7 have more numbers than this width.
QUARTER = dict(width=44, patch=4)
PAIRS = 30_000  # of the teacher, stored for the students of the part `small`


def teacher_of(options: argparse.Namespace, name: str, subject: Subject) -> pathlib.Path:
    """The folder of the trained teacher."""
    if options.teacher and len(options.parts) > 1:
        raise ValueError(f"--teacher is for one part, and these are {', '.join(options.parts)}. Name one with --parts.")
    if options.teacher:
        return options.teacher.absolute()
    workdir = options.work / f"{name}_teacher"
    config = options.root / (subject.tiny if options.tiny else subject.teacher)
    train(options.root, str(config), workdir, *(f"--config.{override}" for override in QUIET))
    return workdir


def students_config(options: argparse.Namespace, subject: Subject, teacher: pathlib.Path, **choices) -> str:
    """The config of its students, as a command line names it."""
    chosen = {"teacher": teacher, "steps": subject.steps, **choices}
    return f"{options.root / STUDENTS}:{','.join(f'{key}={value}' for key, value in chosen.items())}" + (
        ",tiny" if options.tiny else ""
    )


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """What the teacher and all its students are measured by, in one process; real pictures are looked at once.

    Attributes:
      subject: what is compared.
      part: of the experiment, that receipts belong to.
      options: of the command line.
      teacher: the finished run, measured as its students.
    """

    subject: Subject
    part: str
    options: argparse.Namespace
    teacher: Run

    @functools.cached_property
    def evaluators(self) -> dict[str, Any]:
        """By name."""
        return make_evaluators(self.teacher)

    @functools.cached_property
    def teacher_seconds(self) -> Callable[[], float]:
        """Draws a batch as the teacher is meant to, and returns its seconds."""
        drawer, params = Drawer(self.teacher), self.teacher.latest_state().params
        seconds = lambda: self.draw(drawer, params, self.teacher.default_sampler)[0]
        seconds()  # compiles
        return seconds

    @functools.cached_property
    def flow_matching(self) -> Callable[[], float]:
        """Makes an update as the teacher's, on as many images and with the same optimizer as its students', and times it."""
        config = ConfigDict(self.teacher.config.to_dict())
        config.optimizer = dict(name="adam", learning_rate=3e-4)
        if not self.options.tiny:
            config.batch_size = self.subject.batch_size
        return updater(Run(config))

    def as_measured(self, config: ConfigDict) -> ConfigDict:
        """A run's config with this yardstick's measures in place of its own."""
        return ConfigDict({**config.to_dict(), **self.subject.measures(self.options.tiny)})

    def draw(self, drawer: Drawer, params: Mapping[str, Any], sampler: str) -> tuple[float, np.ndarray]:
        """The seconds of a batch of samples, and the samples."""
        size = drawer.run.config.evaluation.batch_size
        conditions = drawn_under(drawer.run, sampler, size)
        began = time.perf_counter()
        samples = drawer.draw(params, sampler, conditions, size, "evaluation", size)
        return time.perf_counter() - began, samples

    def publish(self, config: ConfigDict, workdir: pathlib.Path, method: str, **about: Any) -> None:
        """Measures a finished run and writes its receipts, and a row of its samples, unless they are there.

        Args:
          config: of the run.
          workdir: of the run.
          method: as tables name it.
          **about: further fields of its receipts.
        """
        run = Run(self.as_measured(config), workdir)
        folder, digest = self.options.out / "receipts", config_hash(run.config.to_dict())
        mine = lambda r: r["part"] == self.part and (r["method"], r["seed"]) == (method, run.config.seed)
        if any(mine(receipt) and receipt["config"]["hash"] == digest for receipt in read_receipts(folder)):
            return
        receipts = [{**receipt, "method": method, **about} for receipt in self.measured(run, method)]
        replace_receipts(folder, self.part, receipts, mine)
        first = {r["metric"]: r["value"] for r in receipts if r.get("steps") == receipts[0]["steps"]}
        print(f"{method}, seed {run.config.seed}:", ", ".join(f"{k} {v:.3g}" for k, v in first.items()), flush=True)

    def measured(self, run: Run, method: str) -> Iterator[dict]:
        """The receipts of a finished run at each of its samplers, and of its training."""
        state, drawer = run.latest_state(), Drawer(run)
        step = int(state.step)
        seconds = run_files.seconds_until(run.workdir, step, "training_seconds")
        steps = {name: sampler.description["steps"] for name, sampler in run.method.samplers.items()}
        for name in steps:
            for receipt in evaluate(run, drawer, self.evaluators, state.params, step, name, seconds)[1]:
                if receipt["metric"] in self.subject.judged or (
                    method == "teacher" and receipt["metric"] == f"{self.subject.accuracy}_real"
                ):
                    yield {**receipt, "steps": steps[name]}
        before = self.teacher_seconds()
        drawn = {name: [self.draw(drawer, state.params, name) for _ in range(ROUNDS)] for name in steps}
        beside = (before + self.teacher_seconds()) / 2
        for name, rounds in drawn.items():
            samples = rounds[0][1]
            if name == run.default_sampler:
                row = pictures.grid(samples[:SHOWN], columns=SHOWN, scale=1)
                pictures.save_png(self.rows / f"{method}_{run.config.seed}.png", row)
            own = statistics.median(took for took, _ in rounds)
            description = run.method.samplers[name].description
            about = dict(
                sampler=description["sampler"],
                nfe=description["nfe"],
                guidance_scale=description.get("guidance_scale"),
                ema=run.method.samplers[name].role,
                evaluator="batches timed between two of the teacher's",
                samples=len(samples) * ROUNDS,
                steps=steps[name],
                better="lower",
            )
            yield receipt_of(run, "seconds_per_image", own / len(samples), step, seconds, **about)
            yield receipt_of(run, "time_of_teacher", own / beside, step, seconds, **about)
        peak = max(entry["bytes_peak"] for entry in needs(run)["updates"].values())
        about = dict(sampler="none", nfe=0, guidance_scale=None, ema="none", better="lower")
        for metric, value, evaluator in (
            ("training_seconds", seconds, "the run's own clock"),
            ("training_mebibytes", peak / 2**20, "the compiler"),
        ):
            yield receipt_of(run, metric, value, step, seconds, evaluator=evaluator, samples=0, **about)
        if method == "teacher":
            return
        update = updater(run)
        before, own, after = (
            statistics.median(u() for _ in range(ROUNDS)) for u in (self.flow_matching, update, self.flow_matching)
        )
        about |= dict(evaluator="updates timed between updates of flow matching", samples=ROUNDS)
        yield receipt_of(run, "update_seconds", own, step, seconds, **about)
        yield receipt_of(run, "time_of_flow_matching", own / ((before + after) / 2), step, seconds, **about)

    @property
    def rows(self) -> pathlib.Path:
        """Where rows of samples are kept."""
        return self.options.work / f"{self.part}_rows"

    def curves(self) -> None:
        """Distance against evaluations of the network, of everything that was measured at several steps."""
        found = [r for r in read_receipts(self.options.out / "receipts") if r["part"] == self.part]
        found = [r for r in found if r["metric"] == "frechet" and r.get("steps", 0) <= max(STEPS)]
        several = {
            r["method"] for r in found if len({other["steps"] for other in found if other["method"] == r["method"]}) > 1
        }
        shown = [{**r, "method": r["method"].replace("_", " ")} for r in found if r["method"] in several]
        if shown:
            axes = dict(x="nfe", lines="method", log_x=True, log_y=True)
            titles = dict(nfe="evaluations of the network", value="Fréchet distance")
            tables.figure(self.options.out / f"{self.part}_curves.png", shown, **axes, titles=titles)

    def gallery(self) -> None:
        """The rows of samples of everything that was measured with the first seed, the teacher's first."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.image import imread

        files = sorted(self.rows.glob("*_0.png"), key=lambda file: (file.stem != "teacher_0", file.stem))
        plot = Figure(figsize=(6.4, 0.42 * len(files)), dpi=110)
        plot.subplots_adjust(left=0.36, right=0.99, bottom=0.005, top=0.995)  # names stand on the left
        FigureCanvasAgg(plot)
        for axes, file in zip(plot.subplots(len(files), 1, squeeze=False)[:, 0], files):
            axes.imshow(imread(file), interpolation="nearest")
            axes.set_ylabel(file.stem[:-2].replace("_", " "), rotation=0, ha="right", va="center", fontsize=7)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        plot.canvas.draw()
        picture = np.ascontiguousarray(np.asarray(plot.canvas.buffer_rgba())[..., :3])
        pictures.save_png(self.options.out / f"{self.part}.png", picture)


def yardstick(options: argparse.Namespace, part: str, subject: Subject, teacher: pathlib.Path) -> Yardstick:
    """The yardstick of a part whose teacher is in a folder."""
    bare = Yardstick(subject, part, options, Run(as_meant(teacher, subject), teacher))
    return dataclasses.replace(bare, teacher=Run(bare.as_measured(bare.teacher.config), teacher))


def trained(
    options: argparse.Namespace, subject: Subject, argument: str, folder: pathlib.Path, method: str, seed: int
) -> tuple[ConfigDict, pathlib.Path]:
    """The config and the folder of a student, which is trained unless it has been.

    Args:
      options: of the command line.
      subject: for the batch size.
      argument: the config as a command line names it.
      folder: of all students.
      method: its name there.
      seed: of its training.
    """
    overrides = (*UNMEASURED, *(() if options.tiny else (f"batch_size={subject.batch_size}",)), f"seed={seed}")
    config = load(argument, overrides)
    _ = Run(config).method  # what cannot be built is a ConfigError now
    workdir = folder / f"{method}-{config_hash(config.to_dict())[:6]}"
    train(options.root, argument, workdir, *(f"--config.{override}" for override in overrides))
    return config, workdir


def students(options: argparse.Namespace, name: str, subject: Subject) -> None:
    """Trains teacher and students, and measures them all."""
    teacher = teacher_of(options, name, subject)
    yard = yardstick(options, name, subject, teacher)
    yard.publish(with_few_steps(teacher, subject), teacher, "teacher")
    publish_picture(teacher, options.out / f"{name}_teacher.png")
    failed = []
    for seed in options.seeds:
        for method in chosen_methods(options):
            argument = students_config(options, subject, teacher, method=method, guidance=subject.guidance)
            folder = options.work / f"{name}_students" / f"seed_{seed}"
            try:
                yard.publish(*trained(options, subject, argument, folder, method, seed), method)
            except ConfigError as error:
                print(f"{method} is no student of this teacher: {error}", flush=True)
            except (RuntimeError, ValueError) as error:
                failed.append(method)
                print(f"{method} failed: {error}", flush=True)
    yard.gallery()
    yard.curves()
    if failed:
        raise RuntimeError(f"These students failed: {', '.join(failed)}. All others were measured.")


def chosen_methods(options: argparse.Namespace) -> list[str]:
    """The methods that --only names, in its order."""
    names = load_module(str(options.root / STUDENTS)).METHODS
    return list(dict.fromkeys(name for pattern in options.only for name in names if fnmatch(f"method={name}", pattern)))


def as_meant(teacher: pathlib.Path, subject: Subject) -> ConfigDict:
    """The teacher's config with its default sampler alone, guided as the subject says."""
    config = config_of_run(str(teacher), "The teacher")
    guidance = dict(name="none") if subject.guidance == 1 else dict(name="cfg", scale=subject.guidance)
    config.samplers = {"default": {**config.samplers.default.to_dict(), "guidance": guidance}}
    return config


def with_few_steps(teacher: pathlib.Path, subject: Subject) -> ConfigDict:
    """The same with samplers of as many steps as its students have."""
    config = as_meant(teacher, subject)
    theirs = config.samplers.default.to_dict()
    for steps in STEPS:
        config.samplers[f"euler_{steps}"] = {**theirs, "name": "euler", "steps": steps}
    return config


def small(options: argparse.Namespace) -> None:
    """SlimFlow, of a quarter of the parameters and of all of them, and a quarter without its first half."""
    subject = dataclasses.replace(FASHION, batch_size=64)
    quarter = dict(width=16) if options.tiny else QUARTER
    first = dict(pairs=64, steps=8) if options.tiny else dict(pairs=PAIRS, steps=6_000)
    second = dict(method="guided_direct", steps=8 if options.tiny else 2_000)
    cases = (
        ("small_reflow", "", dict(method="annealed_reflow", **first, **quarter)),
        ("small_slimflow", "small_reflow", second),
        ("small_direct", "", dict(method="direct", **first, **quarter)),
        ("reflow", "", dict(method="annealed_reflow", **first)),
        ("slimflow", "reflow", second),
    )
    chain(options, "small", subject, cases)


def instaflow(options: argparse.Namespace) -> None:
    """A round of reflow, and one step distilled from it by pixels, or by what an image network sees after a start on them."""
    seen = {} if options.tiny else dict(perceptual="efficientnet_lite0")
    cases = (
        ("reflow", "", dict(method="reflow")),
        ("reflow_and_direct", "reflow", dict(method="direct")),
        ("instaflow", "reflow", dict(method="direct", **seen)),
    )
    chain(options, "instaflow", FASHION, cases)


def chain(options: argparse.Namespace, part: str, subject: Subject, cases: tuple[tuple[str, str, dict], ...]) -> None:
    """Students of Fashion-MNIST of which one may be the teacher of the next.

    Args:
      options: of the command line.
      part: of the experiment.
      subject: FASHION, or what differs from it here.
      cases: name, the teacher's name ('' for the one of all, whose guidance is folded in) and options of configs/students.py.
    """
    teacher = teacher_of(options, "fashion", subject)
    yard, folders = yardstick(options, part, subject, teacher), {"": teacher}
    for name, source, choices in cases:
        guidance = 1.0 if source else subject.guidance
        argument = students_config(options, subject, folders[source], guidance=guidance, **choices)
        if choices.get("pairs"):
            run_module(options.root, "flowjax.main", f"--config={argument}", "--mode=pairs")  # those there are kept
        config, folders[name] = trained(options, subject, argument, options.work / part, name, 0)
        student = Run(config, folders[name]).executor.abstract.params["student"]
        yard.publish(config, folders[name], name, parameters=sum(leaf.size for leaf in jax.tree.leaves(student)))
    yard.gallery()
    yard.curves()


def updater(run: Run) -> Callable[[], float]:
    """What makes an update and returns its seconds, each phase in its share of the steps."""
    executor, source = run.executor, run.iterator()
    batches = {name: value[:1] for name, value in source.stack_batches(1).items()}
    source.close()
    cycle = run.method.cycle()
    shares = {due: cycle.count(due) / len(cycle) for due in dict.fromkeys(cycle) if due}
    programs = {due: executor.program(due, 1) for due in shares}
    state = [executor.start()]
    placed = executor.put(batches)

    def one(due) -> float:
        began = time.perf_counter()
        state[0], metrics = programs[due](state[0], placed, np.int32(1), executor.root)
        jax.block_until_ready((state[0], metrics))
        return time.perf_counter() - began

    for due in shares:
        one(due)  # compiles
    return lambda: sum(share * one(due) for due, share in shares.items())


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment alone."""
    parser.add_argument("--only", nargs="+", default=["*"], help="only the students whose name matches, in this order")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], choices=SEEDS, help="of the students (default: 0)")
    parser.add_argument("--teacher", type=pathlib.Path, help="a finished run to learn from, for one part")


PARTS = {
    "fashion": lambda options: students(options, "fashion", FASHION),
    "shapes": lambda options: students(options, "shapes", SHAPES),
    "small": small,
    "instaflow": instaflow,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, more)


if __name__ == "__main__":
    sys.exit(main())
