"""Students of few steps, on points whose flow is known in closed form.

    python -m flowjax.main --config=configs/distillation.py                              # MeanFlow from data alone
    python -m flowjax.main --config=configs/distillation.py:method=progressive,weights=uneven
    python -m flowjax.sweep --config=configs/distillation.py --out=runs/distillation     # every method, both weights

The teacher is the exact velocity of eight modes on a ring, so that nothing but the method is measured.
"""

from flowjax import sweep as hyper
from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule, set_value

JUMPS = dict(name="flow_map", grid=dict(name="uniform"), role="ema")
NOISES_AGAIN = dict(name="consistency", grid=dict(name="uniform"), role="ema")
STEPS = {"default": 1, "two": 2, "four": 4}
ONE = {"default": 1}
EULER = dict(name="euler", grid=dict(name="uniform"), role="ema")
TEACHER = dict(name="mixture")  # with the weights of the data
# Students that match distributions. Few steps a dispatch: phases that are due at different steps cannot share one.
MATCHED = {"samplers": NOISES_AGAIN, "steps": ONE, "updates": 10_000, "steps_per_dispatch": 4}
FAKE = dict(name="adam", learning_rate=1e-3, decay="cosine", warmup_steps=200)
BY_FAKE = dict(teacher=TEACHER, start="fresh", scale="gaussian", fake_warmup=1_000, fake_optimizer=FAKE)
REFEREE = dict(penalty_weight=0.1, discriminator_optimizer=dict(name="adam", learning_rate=1e-3, b1=0.5))
# Modes of a mixture overlap where there is much noise: only there can two denoisers tell how the modes are weighed.
LOOKED_AT = {"time": dict(name="logit_normal", mean=-0.8), "optimizer.learning_rate": 3e-4}
JUDGED = dict(teacher=TEACHER, start="fresh", steps=1, game="non_saturating", penalty_weight=0.1)
NEAR = dict(name="uniform", low=0.5)  # a teacher that sees little of a sample would draw it to the middle
CALM = {"optimizer.learning_rate": 5e-4, "optimizer.b1": 0.5}
# method -> what it changes: config key -> value. `samplers` is the sampler of its students and `steps` what it is asked for.
STUDENTS = {
    "mean_flow": {
        "method": dict(name="mean_flow", power=0.0, equal_times=0.5),
        "network.two_times": True,
        "network.octaves": 4,
        "samplers": JUMPS,
    },
    "direct": {
        "method": dict(name="direct", teacher=TEACHER),
        "samplers": EULER,
        "steps": ONE,
    },
    "progressive": {
        "method": dict(name="progressive", teacher=TEACHER, first_steps=64),
        "samplers": EULER,
        # Kept: the students of four steps, of two and of one, at the ends of the last three of seven stages.
        "when.checkpoint": schedule(at_percent=[100 * stage / 7 for stage in (5, 6, 7)]),
        "checkpoint.keep_latest": 3,
    },
    "reflow": {
        "method": dict(name="reflow", teacher=TEACHER),
        "time": dict(name="u_shaped"),
        "samplers": EULER,
    },
    "rectified_flow_pp": {
        "method": dict(
            name="reflow",
            teacher=TEACHER,
            real=0.5,
            distance=dict(name="pseudo_huber", width=0.01),
            perceptual=dict(name="squared"),
            perceptual_weight=0.1,
        ),
        "time": dict(name="u_shaped", high=0.999),
        "weight": dict(name="ramp"),
        "samplers": EULER,
    },
    "rectified_diffusion": {
        "method": dict(name="reflow", teacher=TEACHER, prediction="data"),
        "path": dict(name="trigonometric"),
        "time": dict(name="u_shaped", high=0.999),
        "samplers": dict(EULER, name="ddim"),
    },
    "annealed_reflow": {
        "method": dict(name="reflow", teacher=TEACHER, annealing=dict(name="cosine", steps=10_000)),
        "network.width": 120,  # a quarter of the parameters
        "time": dict(name="u_shaped"),
        "samplers": EULER,
    },
    "boot": {
        "method": dict(name="boot", teacher=TEACHER),
        "network.two_times": True,
        "samplers": JUMPS,
        "steps": ONE,
    },
    "perflow": {
        "method": dict(name="perflow", teacher=TEACHER),
        "samplers": EULER,
        "steps": {"default": 4, "eight": 8},
    },
    "direct_map": {
        "method": dict(name="direct", teacher=TEACHER),
        "network.two_times": True,
        "samplers": JUMPS,
    },
    "dmd": {**MATCHED, "method": dict(name="dmd", **BY_FAKE)},
    "dmd2": {**MATCHED, **LOOKED_AT, "method": dict(name="dmd2", student_every=2, **BY_FAKE)},
    "dmd2_gan": {  # a discriminator sees where two denoisers agree; it needs times at which samples are little noised
        **MATCHED,
        "optimizer.learning_rate": 3e-4,
        "method": dict(name="dmd2", student_every=2, adversarial_weight=3.0, **REFEREE, **BY_FAKE),
    },
    "sid": {**MATCHED, **LOOKED_AT, "method": dict(name="sid", **BY_FAKE)},
    "ladd": {**MATCHED, **CALM, "method": dict(name="ladd", **JUDGED)},
    "add": {**MATCHED, **CALM, "time": NEAR, "method": dict(name="add", distillation_weight=0.1, **JUDGED)},
    "improved_mean_flow": {
        "method": dict(name="mean_flow", direction="own", power=0.0, equal_times=0.5),
        "network.two_times": True,
        "network.octaves": 4,
        "samplers": JUMPS,
    },
    "shortcut": {
        "method": dict(name="shortcut", share=0.25),
        "network.two_times": True,
        "samplers": JUMPS,
    },
    "shortcut_distillation": {
        "method": dict(name="shortcut", share=0.25, teacher=TEACHER),
        "network.two_times": True,
        "samplers": JUMPS,
    },
    "trajectory_consistency": {
        "method": dict(name="trajectory_consistency", teacher=TEACHER, longest=0.1, solver_steps=2),
        "network.two_times": True,
        "network.octaves": 4,
        "samplers": JUMPS,
    },
    "moment_matching": {
        "method": dict(name="moment_matching", particles=64, step=0.01, a=0.0, b=5.0),
        "network.two_times": True,
        "samplers": JUMPS,
    },
    "continuous_consistency_distillation": {
        "method": dict(name="continuous_consistency", teacher=TEACHER, warmup_steps=2_000),
        "path": dict(name="trigonometric"),
        "time": dict(name="trigonometric_log_normal", mean=-0.5),
        "network.octaves": 4,
        "samplers": NOISES_AGAIN,
    },
    "continuous_consistency_training": {
        # A normalised tangent of single pairs would be drawn towards the likelier mode: this constant leaves it as it is.
        "method": dict(name="continuous_consistency", warmup_steps=2_000, constant=10.0),
        "path": dict(name="trigonometric"),
        "time": dict(name="trigonometric_log_normal", mean=-0.5),
        "network.octaves": 4,
        "samplers": NOISES_AGAIN,
    },
    "consistency_distillation": {
        "method": dict(
            name="consistency",
            teacher=TEACHER,
            pairs=dict(name="grid", levels=dict(name="constant", count=64)),
        ),
        "network.octaves": 4,
        "samplers": NOISES_AGAIN,
    },
    "latent_consistency": {
        "method": dict(
            name="consistency",
            teacher=TEACHER,
            pairs=dict(name="grid", levels=dict(name="constant", count=50)),
            target=dict(name="constant", decay=0.95),
            distance=dict(name="pseudo_huber", width=0.1),
            scales=(1.0, 4.0),
        ),
        "data.labels": True,
        "network.guidance_conditional": True,
        "samplers": dict(NOISES_AGAIN, conditions=dict(guidance=1.0)),
    },
    "consistency_training": {
        "method": dict(
            name="consistency",
            pairs=dict(name="grid", levels=dict(name="square_root")),
            target=dict(name="levels", decay=0.1),
        ),
        "samplers": NOISES_AGAIN,
    },
    "improved_consistency_training": {
        "method": dict(
            name="consistency",
            pairs=dict(name="grid", levels=dict(name="doubling"), cells="times"),
            distance=dict(name="pseudo_huber", width=0.1),
        ),
        "samplers": NOISES_AGAIN,
    },
    "easy_consistency_tuning": {
        "method": dict(name="consistency", pairs=dict(name="ratio"), distance=dict(name="pseudo_huber", width=0.1)),
        "network.octaves": 4,
        "samplers": NOISES_AGAIN,
    },
}


def get_config(argument: str = "") -> ConfigDict:
    """Options: tiny; method = one of STUDENTS; weights = even or uneven."""
    options = parse_argument(argument, tiny=False, method="mean_flow", weights="even")
    config = defaults()
    config.name = f"distillation_{options.method}_{options.weights}"
    config.steps = 20_000
    config.batch_size = 256
    config.steps_per_dispatch = 100
    config.data = dict(name="mixture", weights=options.weights)
    config.network = dict(name="mlp", width=256, depth=3)
    config.optimizer = dict(name="adam", learning_rate=1e-3, decay="cosine", warmup_steps=200)
    config.ema = dict(ema=dict(name="power", std=0.05))
    config.when.log = schedule(every_steps=1_000)
    config.when.checkpoint = schedule(at_percent=(100,))
    config.sample.count = 2_000
    config.evaluation = dict(count=5_000, batch_size=5_000)
    config.evaluators = dict(sliced_w2=dict(name="sliced_w2"), mode_weights=dict(name="mode_weights"))
    changes = dict(choose("method", options.method, STUDENTS))
    jumper, asked = changes.pop("samplers"), changes.pop("steps", STEPS)
    config.samplers = {name: dict(jumper, steps=steps) for name, steps in asked.items()}
    config.steps = changes.pop("updates", config.steps)
    for key, value in changes.items():
        set_value(config, key, value)
    if "teacher" in config.method:
        config.method.teacher = dict(config.method.teacher, weights=options.weights)
    if options.tiny:
        config.name += "_tiny"
        config.steps = 60
        config.steps_per_dispatch = 10
        config.network.width = 32
        config.optimizer.warmup_steps = 10
        if "fake_warmup" in config.method:
            config.method.fake_warmup = 10
        config.when.log = schedule(every_steps=20)
        config.sample.count = 200
        config.evaluation = dict(count=500, batch_size=500)
    return config


def sweep() -> list[hyper.Point]:
    """Every method, with even and with uneven weights."""
    return hyper.product(hyper.sweep(":method", STUDENTS), hyper.sweep(":weights", ("even", "uneven")))
