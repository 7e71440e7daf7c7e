"""Students of few steps of any finished run, whose data, network, path and measures they take.

    python -m flowjax.main --config=configs/digits.py:network=dit --workdir=runs/teacher
    python -m flowjax.main --config=configs/students.py:teacher=runs/teacher,method=progressive
    python -m flowjax.main --config=configs/students.py:teacher=runs/teacher,method=latent_consistency_lora,rank=8
    python -m flowjax.sweep --config=configs/students.py:teacher=runs/teacher --out=runs/students               # every method

Every student starts as its teacher, with the same network, and sees as many images as every other. `guidance` is the scale
of guidance that it takes over, so that its samples need no second evaluation; a latent consistency model learns all scales
from 1 to 4 and samples at this one. Methods of FROM_DATA go on from the teacher's parameters and never ask it again: they
learn from the data alone, and are guided while they sample, by a second evaluation.

Continuous consistency and MeanFlow follow the derivative of a network in time, which is only smooth where its embedding of time
is: train the teacher with network.time_scale=10, as configs/fashion.py does.

`perceptual` names an image network (flowjax/models/features) whose weights are prepared: methods that have a distance of
pictures take it on that network's features, and ADD's discriminator stands on them; otherwise distances are of pixels, and
ADD judges by its teacher's tokens. InstaFlow is two runs, a round of reflow with the teacher's guidance and then distillation
from its straight flow, which begins with squared errors and goes on with the perceptual distance:

    python -m flowjax.data.prepare efficientnet_lite0
    python -m flowjax.main --workdir=runs/straight --config=configs/students.py:teacher=runs/t,method=reflow,guidance=1.5
    python -m flowjax.main --workdir=runs/instaflow \
        --config=configs/students.py:teacher=runs/straight,method=direct,perceptual=efficientnet_lite0

`width` makes a smaller student, which starts fresh and learns by the optimizer that its teacher began with; a transformer with
less width than its patches have numbers cannot tell the noise in them, so give it smaller patches (`patch`). `pairs` stores so
many of the teacher's pairs in its folder, once for all students that reflow or regress on them, in place of new ones for
every update. SlimFlow is two runs of a small student, the second with the first as its teacher:

    FIRST=configs/students.py:teacher=runs/t,method=annealed_reflow,width=44,patch=4,pairs=50000
    python -m flowjax.main --config=$FIRST --mode=pairs
    python -m flowjax.main --config=$FIRST --workdir=runs/small
    python -m flowjax.main --config=configs/students.py:teacher=runs/small,method=guided_direct --workdir=runs/slim
"""

from flowjax import sweep as hyper
from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule, set_value
from flowjax.methods.finished import adopt, reference_of_run
from flowjax.models.stored import split_reference

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
HUBER = dict(name="pseudo_huber", width=0.03)
# A trained student would outrun fresh heads: they take larger steps than it does. The game's gradient does not vanish when
# the discriminator is ahead, and R1 keeps it from running away.
HEADS = dict(name="adam", learning_rate=1e-3, b1=0.5)
JUDGED = dict(game="non_saturating", penalty_weight=0.1, penalty_step=0.1, discriminator_optimizer=HEADS)
ADVERSARY = dict(
    adversarial_weight=3e-3, penalty_weight=0.1, penalty_step=0.1, discriminator_optimizer=HEADS
)  # of DMD2
CALM = {**PLAYED, "optimizer.learning_rate": 1e-4, "optimizer.b1": 0.5}
# Tangents are all made equally long, so that small steps alone keep the network's own derivative from running away; it comes
# in over the whole run.
TANGENTS = {
    "method": dict(name="continuous_consistency"),
    "lasting": {"method.warmup_steps": 1.0},
    "optimizer.learning_rate": 1e-4,
}
# A jump of the whole path is learnt after those of which it is made: few of them, half of the batch, and a judge that follows.
DOUBLINGS = dict(name="shortcut", levels=4, share=0.5, judge=SLOWLY)
# Solvers are the midpoint rule throughout: it never asks a teacher at the clean end, where a data prediction has no velocity.
# method -> what it changes: config key -> value. `asked` are its samplers' steps, FEW unless said; `lasting` is what lasts a
# share of the run.
STUDENTS = {
    "direct": {"method": dict(name="direct", teacher_steps=4), "samplers": EULER, "asked": ONE},
    "direct_map": {"method": dict(name="direct", teacher_steps=4), **TWO_TIMES},
    "progressive": {"method": dict(name="progressive", first_steps=16), "samplers": EULER, "asked": ONE},
    "reflow": {"method": dict(name="reflow", teacher_steps=4), "time": dict(name="u_shaped"), "samplers": EULER},
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
            distance=HUBER,
            scales=(1.0, 4.0),
        ),
        "network.guidance_conditional": True,
        "samplers": NOISES_AGAIN,
    },
    "latent_consistency_lora": {  # one scale of guidance, the teacher's
        "method": dict(name="consistency", pairs=GRID, target=SLOWLY, solver="midpoint", distance=HUBER),
        "lora.rank": 16,
        "samplers": NOISES_AGAIN,
    },
    "continuous_consistency_distillation": {**TANGENTS, "samplers": NOISES_AGAIN},
    "trajectory_consistency": {
        "method": dict(
            name="trajectory_consistency",
            longest=0.2,
            to_end=0.5,
            field="teacher",
            solver="midpoint",
            solver_steps=2,
            judge=SLOWLY,
        ),
        **TWO_TIMES,
    },
    "shortcut_distillation": {"method": DOUBLINGS, **TWO_TIMES},
    "mean_flow_distillation": {"method": dict(name="mean_flow", equal_times=0.5), **TWO_TIMES},
    "dmd": {**PLAYED, "method": dict(name="dmd", teacher_steps=4)},
    "dmd2": {**PLAYED, "method": dict(name="dmd2", student_every=2)},
    "dmd2_gan": {**PLAYED, "method": dict(name="dmd2", student_every=2, **ADVERSARY)},
    "sid": {**PLAYED, "method": dict(name="sid")},
    "ladd": {**CALM, "method": dict(name="ladd", steps=1, **JUDGED)},
    "add": {**CALM, "method": dict(name="add", steps=1, **JUDGED)},
    "rectified_flow_pp": {
        "method": dict(name="reflow", teacher_steps=4, real=0.5, distance=HUBER),
        "time": dict(name="u_shaped", high=0.999),
        "samplers": EULER,
    },
    "rectified_diffusion": {  # the pairs' own path and prediction, whatever they are: only the noise is the matching one
        "method": dict(name="reflow", teacher_steps=4, loss="data", distance=HUBER),
        "time": dict(name="u_shaped", high=0.999),
        "samplers": dict(EULER, name="ddim"),
    },
    "annealed_reflow": {
        "method": dict(name="reflow", teacher_steps=4, annealing=dict(name="cosine")),
        "lasting": {"method.annealing.steps": 0.5},
        "time": dict(name="u_shaped"),
        "samplers": EULER,
    },
    "guided_direct": {
        "method": dict(name="direct", teacher_steps=4, guided_weight=1.0),
        "samplers": EULER,
        "asked": ONE,
    },
}
# A consistency model that has no teacher follows single pairs: the closer their times, the more of its gradient is noise. A
# short run therefore ends with pairs less close than the published ones, and takes small steps.
UNTAUGHT = {"optimizer.learning_rate": 1e-4, "samplers": NOISES_AGAIN}
FROM_DATA = {
    "consistency_training": {
        **UNTAUGHT,
        "method": dict(
            name="consistency",
            pairs=dict(name="grid", levels=dict(name="square_root", last=32)),
            target=dict(name="levels", decay=0.9),
        ),
    },
    "easy_consistency_tuning": {
        **UNTAUGHT,
        "method": dict(name="consistency", pairs=dict(name="ratio", stages=4), distance=HUBER),
    },
    "improved_consistency_training": {
        **UNTAUGHT,
        "method": dict(
            name="consistency",
            pairs=dict(name="grid", levels=dict(name="doubling", first=8, last=32), cells="times"),
            distance=HUBER,
        ),
    },
    "continuous_consistency_training": {**TANGENTS, **UNTAUGHT},
    "shortcut": {"method": DOUBLINGS, **TWO_TIMES},
    "mean_flow": {"method": dict(name="mean_flow", equal_times=0.5), **TWO_TIMES},
    "improved_mean_flow": {"method": dict(name="mean_flow", direction="own", equal_times=0.5), **TWO_TIMES},
    "moment_matching": {"method": dict(name="moment_matching", particles=4), **TWO_TIMES},
}
METHODS = {**STUDENTS, **FROM_DATA}

PAIRED = ("reflow", "direct")  # the methods that take stored pairs
PAIR_STEPS = 8  # of the midpoint rule, once for a pair
SEEN_AT = 64  # the side that pictures are enlarged to for an image network
# Where a method has a distance of pictures, and for which share of the run it is of pixels first.
PERCEIVED = {
    **dict.fromkeys(("direct", "direct_map", "guided_direct"), ("distance", 0.25)),
    **dict.fromkeys(("consistency_distillation", "consistency_training", "dmd"), ("distance", 0.0)),
    "rectified_flow_pp": ("perceptual", 0.0),
}


def get_config(argument: str = "") -> ConfigDict:
    """Options: teacher = a run's folder; method = one of METHODS; guidance; rank = of an adapter, 0 for the method's own or
    none; perceptual = an image network; width; patch; pairs = how many are stored, 0 for new ones in every update; steps; tiny.
    """
    options = parse_argument(
        argument,
        teacher="",
        method="progressive",
        guidance=1.0,
        rank=0,
        perceptual="",
        width=0,
        patch=0,
        pairs=0,
        steps=2_000,
        tiny=False,
    )
    if not options.teacher:
        raise ValueError("Which run is the teacher? Give --config=configs/students.py:teacher=RUN_DIRECTORY.")
    changes = {"asked": FEW, **choose("method", options.method, METHODS)}
    config = defaults()
    theirs = adopt(config, options.teacher, "The teacher")
    config.name = f"{theirs.name}_{options.method}" + (f"_rank_{options.rank}" if options.rank else "")
    config.name += f"_width_{options.width}" if options.width else ""
    config.name += f"_{options.perceptual}" if options.perceptual else ""
    config.steps = 8 if options.tiny else options.steps
    config.optimizer = dict(name="adam", learning_rate=3e-4, decay="cosine", warmup_steps=100)
    config.ema = dict(ema=dict(name="power", std=0.05))
    config.when.log = schedule(every_steps=100)
    config.when.sample = schedule(at_percent=(25, 50, 100))
    config.when.evaluate = schedule(at_percent=(100,))
    config.when.checkpoint = schedule(every_steps=500, at_percent=(100,))
    sampler, asked = changes.pop("samplers"), changes.pop("asked")
    config.samplers = {name: dict(sampler, steps=steps) for name, steps in asked.items()}
    for key, share in changes.pop("lasting", {}).items():
        changes[key] = int(share * config.steps)
    for key, value in changes.items():
        set_value(config, key, value)
    config.method.prediction = theirs.method.get("prediction", "velocity")
    if options.method in FROM_DATA:
        if options.guidance != 1:
            for name in config.samplers:
                config.samplers[name].guidance = dict(name="cfg", scale=options.guidance)
        config.restore.student = reference_of_run(options.teacher, "The teacher")
    else:
        learn_from(config, options.teacher, options.guidance)
    if options.method in ("ladd", "add", "dmd2_gan") and "depth" in config.network:  # a head on every block
        layers = tuple(range(1, config.network.depth + 1))
        config.method.discriminator = dict(name="tokens", layers=layers)
    if options.perceptual:
        look_at(config, options.method, options.perceptual)
    if options.rank:
        config.lora.rank = options.rank
    if options.width:
        if options.method in FROM_DATA:
            raise ValueError(
                f"width={options.width}: '{options.method}' goes on from its teacher's network. Leave it out."
            )
        config.network["channels" if config.network.name == "unet" else "width"] = options.width
        config.optimizer, config.method.start = theirs.optimizer, "fresh"
    if options.patch:
        if not options.width or "patch" not in config.network:
            raise ValueError(
                f"patch={options.patch} is for a transformer that starts fresh: give it a width, or leave this out."
            )
        config.network.patch = options.patch
    if options.pairs:
        store_pairs(config, options.pairs)
    if options.tiny:
        config.name += "_tiny"
        config.steps_per_dispatch = min(config.steps_per_dispatch, 4)
        config.optimizer.warmup_steps = 2
        config.when.log = schedule(every_steps=4)
        config.when.sample = config.when.evaluate = schedule(at_percent=(100,))
    return config


def learn_from(config: ConfigDict, run: str, guidance: float) -> None:
    """Gives the method a run as teacher, with a scale of guidance."""
    teacher = dict(name="run", restore_from=run, guidance_scale=guidance)
    if "scales" in config.method:  # a student that is told the scale
        low, high = config.method.scales
        if not low <= guidance <= high:
            raise ValueError(f"guidance={guidance}: this method learns the scales from {low} to {high}.")
        teacher["guidance_scale"] = 1.0
        for name in config.samplers:
            config.samplers[name].conditions = dict(guidance=guidance)
    config.method.update(teacher=teacher, start="teacher")


def store_pairs(config: ConfigDict, count: int) -> None:
    """Lets a method take its teacher's pairs from a folder of the teacher's, where --mode=pairs puts them."""
    method = config.method
    choose("method that takes stored pairs", method.name, dict.fromkeys(PAIRED))
    if method.get("guided_weight") or config.network.get("two_times"):
        raise ValueError(f"pairs={count}: this method asks its teacher between the ends of a pair. Leave it out.")
    teacher = dict(name="run", restore_from=method.teacher.restore_from, guidance_scale=method.teacher.guidance_scale)
    checkpoints, _ = split_reference(teacher["restore_from"], "The teacher")
    real = method.get("real", 0.0)
    folder = f"pairs_{count}_guidance_{teacher['guidance_scale']:g}" + (f"_real_{real:g}" if real else "")
    config.data = dict(
        name="pairs",
        folder=str(checkpoints.parent / folder),
        source=config.data.to_dict(),
        teacher=teacher,
        path=config.path.to_dict(),
        count=count,
        steps=PAIR_STEPS,
        real=real,
    )
    config.coupling = dict(name="stored")
    if method.start == "teacher":
        config.restore.student = reference_of_run(teacher["restore_from"], "The teacher")
    for key in ("teacher", "teacher_steps", "start", "real"):
        if key in method:
            del method[key]


def look_at(config: ConfigDict, method: str, extractor: str) -> None:
    """Lets a method compare or judge pictures by what an image network sees in them."""
    if method == "add":
        config.method.discriminator = dict(name="features", extractor=extractor, input_size=SEEN_AT)
        return
    place, share = choose("method with a distance of pictures", method, PERCEIVED)
    network = dict(name="features", extractor=extractor, input_size=SEEN_AT)
    config.method[place] = dict(name="perceptual", network=network, squared_until=int(share * config.steps))


def sweep() -> list[hyper.Point]:
    """Every method."""
    return hyper.sweep(":method", METHODS)
