"""Students of few steps of any finished run, whose data, network, path and measures they take.

    python -m flowjax.main --config=configs/digits.py:network=dit --workdir=runs/teacher
    python -m flowjax.main --config=configs/students.py:teacher=runs/teacher,method=progressive
    python -m flowjax.main --config=configs/students.py:teacher=runs/teacher,method=latent_consistency,rank=16   # LCM-LoRA
    python -m flowjax.sweep --config=configs/students.py:teacher=runs/teacher --out=runs/students               # every method

Every student starts as its teacher, with the same network, and sees as many images as every other. `guidance` is the scale
of guidance that it takes over, so that its samples need no second evaluation; a latent consistency model learns all scales
from 1 to 4 and samples at this one.
"""

from flowjax import sweep as hyper
from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule, set_value
from flowjax.methods.finished import config_of_run

TAKEN = ("data", "text", "network", "path", "noise", "preconditioning", "precision", "evaluation", "evaluators")
# Samplers, and how many steps each is asked for.
EULER = dict(name="euler", grid=dict(name="uniform"), role="ema")
JUMPS = dict(name="flow_map", grid=dict(name="uniform"), role="ema")
NOISES_AGAIN = dict(name="consistency", grid=dict(name="uniform"), role="ema")
FEW = {"default": 1, "two": 2, "four": 4}
ONE = {"default": 1}
TWO_TIMES = {"network.two_times": True, "samplers": JUMPS}
# Phases that are due at different steps cannot share a dispatch.
PLAYED = {"samplers": NOISES_AGAIN, "asked": ONE, "steps_per_dispatch": 1}
GRID = dict(name="grid", levels=dict(name="constant", count=32))
SLOWLY = dict(name="constant", decay=0.95)
# Solvers are the midpoint rule throughout: it never asks a teacher at the clean end, where a data prediction has no velocity.
# method -> what it changes: config key -> value. `asked` are its samplers' steps, FEW unless said.
STUDENTS = {
    "direct": {"method": dict(name="direct", teacher_steps=8), "samplers": EULER, "asked": ONE},
    "direct_map": {"method": dict(name="direct", teacher_steps=8), **TWO_TIMES},
    "progressive": {"method": dict(name="progressive", first_steps=16), "samplers": EULER, "asked": ONE},
    "reflow": {"method": dict(name="reflow", teacher_steps=8), "time": dict(name="u_shaped"), "samplers": EULER},
    "perflow": {
        "method": dict(name="perflow", teacher_steps=4),
        "samplers": EULER,
        "asked": {"default": 4, "eight": 8},
    },
    "boot": {"method": dict(name="boot"), **TWO_TIMES, "asked": ONE},
    "consistency_distillation": {
        "method": dict(name="consistency", pairs=GRID, target=SLOWLY, solver="midpoint"),
        "samplers": NOISES_AGAIN,
    },
    "latent_consistency": {
        "method": dict(
            name="consistency",
            pairs=GRID,
            target=SLOWLY,
            solver="midpoint",
            distance=dict(name="pseudo_huber", width=0.03),
            scales=(1.0, 4.0),
        ),
        "network.guidance_conditional": True,
        "samplers": NOISES_AGAIN,
    },
    "continuous_consistency_distillation": {
        "method": dict(name="continuous_consistency", warmup_steps=500),
        "samplers": NOISES_AGAIN,
    },
    "trajectory_consistency": {
        "method": dict(name="trajectory_consistency", longest=0.2, solver="midpoint", solver_steps=2, judge=SLOWLY),
        **TWO_TIMES,
    },
    "shortcut_distillation": {"method": dict(name="shortcut", share=0.25), **TWO_TIMES},
    "mean_flow_distillation": {"method": dict(name="mean_flow", equal_times=0.5), **TWO_TIMES},
    "dmd": {**PLAYED, "method": dict(name="dmd", teacher_steps=8)},
    "dmd2": {**PLAYED, "method": dict(name="dmd2", student_every=2)},
    "sid": {**PLAYED, "method": dict(name="sid")},
    "ladd": {**PLAYED, "method": dict(name="ladd", steps=1)},
    "add": {**PLAYED, "method": dict(name="add", steps=1)},
}


def get_config(argument: str = "") -> ConfigDict:
    """Options: teacher = a run's folder; method = one of STUDENTS; guidance; rank = of an adapter, 0 to train all; tiny."""
    options = parse_argument(argument, teacher="", method="progressive", guidance=1.0, rank=0, tiny=False)
    if not options.teacher:
        raise ValueError("Which run is the teacher? Give --config=configs/students.py:teacher=RUN_DIRECTORY.")
    changes = {"asked": FEW, **choose("method", options.method, STUDENTS)}
    theirs = config_of_run(options.teacher, "The teacher")
    config = defaults()
    config.name = f"{theirs.name}_{options.method}" + (f"_rank_{options.rank}" if options.rank else "")
    for name in TAKEN:
        config[name] = theirs[name]
    config.seed = theirs.seed
    config.steps = 2_000
    config.batch_size = theirs.batch_size
    config.steps_per_dispatch = theirs.steps_per_dispatch
    config.optimizer = dict(name="adam", learning_rate=3e-4, decay="cosine", warmup_steps=100)
    config.ema = dict(ema=dict(name="power", std=0.05))
    config.when.log = schedule(every_steps=100)
    config.when.sample = schedule(at_percent=(25, 50, 100))
    config.when.evaluate = schedule(at_percent=(100,))
    config.when.checkpoint = schedule(every_steps=500, at_percent=(100,))
    config.sample = theirs.sample
    sampler, asked = changes.pop("samplers"), changes.pop("asked")
    config.samplers = {name: dict(sampler, steps=steps) for name, steps in asked.items()}
    for key, value in changes.items():
        set_value(config, key, value)
    teacher = dict(name="run", restore_from=options.teacher, guidance_scale=options.guidance)
    if "scales" in config.method:  # a student that is told the scale
        low, high = config.method.scales
        if not low <= options.guidance <= high:
            raise ValueError(f"guidance={options.guidance}: '{options.method}' learns the scales from {low} to {high}.")
        teacher["guidance_scale"] = 1.0
        for name in config.samplers:
            config.samplers[name].conditions = dict(guidance=options.guidance)
    config.method.update(teacher=teacher, prediction=theirs.method.get("prediction", "velocity"), start="teacher")
    if options.rank:
        config.lora.rank = options.rank
    if options.tiny:
        config.name += "_tiny"
        config.steps = 8
        config.steps_per_dispatch = min(config.steps_per_dispatch, 4)
        config.optimizer.warmup_steps = 2
        config.when.log = schedule(every_steps=4)
        config.when.sample = config.when.evaluate = schedule(at_percent=(100,))
    return config


def sweep() -> list[hyper.Point]:
    """Every method."""
    return hyper.sweep(":method", STUDENTS)
