"""A finished run, tuned by what its samples are worth, or by what people found better.

    python -m flowjax.main --config=configs/points.py --workdir=runs/points
    python -m flowjax.main --config=configs/preference.py:run=runs/points                          # Flow-GRPO, to the right
    python -m flowjax.main --config=configs/preference.py:run=runs/points,method=nft,reward=quadratic
    python -m flowjax.main --config=configs/preference.py:run=runs/shapes,reward=scene,guidance=2.5    # the parser of captions
    python -m flowjax.main --config=configs/preference.py:run=runs/digits,reward=brightness,rank=16    # an adapter
    python -m flowjax.main --config=configs/preference.py:run=runs/student,method=draft,sampler=own    # a student of few steps
    python -m flowjax.main --config=configs/preference.py:run=runs/shapes,reward=runs/reward_shapes # a reward model
    python -m flowjax.main --config=configs/preference.py:run=runs/shapes,method=dpo,data=FOLDER    # what people found better
    python -m flowjax.sweep --config=configs/preference.py:run=runs/points --out=runs/preference       # every method

It goes on from the run's parameters with the run's network, data and path; conditions of the data are those that samples are
drawn under. A watchdog holds the model against the one it began as: reward, a held-out reward, divergence and spread, by step
and as a curve in report.html. It stops a run that drifts further than `divergence` nats (100, or one for each element of larger
examples, unless told; 0 for any), keeps less than `spread` of the first spread, or draws groups that are nearly all worth the
same; with several updates a rollout (method.updates), also one that clips nearly every step. `held` is the reward that it
alone knows.

`reward`, and `held`, may name the folder of a reward model (configs/reward_model.py). With `data`, a folder of comparisons or,
for KTO and best_of, of pictures that were judged by themselves (flowjax/data/comparisons.py), DPO, KTO and best_of draw nothing
and know no reward: they learn from these, best_of from the winners alone. Captions are read in the words of the run.

`hold` says how firmly the reference holds: a reward alone is worth any drift. It is the weight of the divergence in policy
gradients, which sum log-probabilities over the elements of a sample so that the divergence is that of whole steps; beta of
the summed error in DPO and KTO; the weight of the squared distance in DiffusionNFT; the weight of the data's own loss in ReFL
and DRaFT. Each method has a value of its own, unless told. Best of N is held by the reference that draws its samples.

`sampler=own` is for students of few steps (configs/students.py): they draw as they were made to, and their reward is followed
back through their steps, by ReFL or DRaFT; all other methods would train them as the flows that they are no more. Nothing of
the data holds them, and a student has no divergence: what ends the run is its spread, and the parser of captions where that
is held out.
"""

import pathlib
from typing import Any

from flowjax import sweep as hyper
from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule
from flowjax.methods.finished import adopt, like_run, reference_of_run
from flowjax.samplers.build import default_name

REWARDS = {
    "linear": dict(right=dict(name="linear", direction=(1.0, 0.0))),
    "quadratic": dict(centred=dict(name="quadratic")),
    "brightness": dict(bright=dict(name="brightness")),
    "compressibility": dict(small=dict(name="compressibility")),
    "scene": dict(right=dict(name="scene")),
}
GRID = dict(name="uniform")
HEUN = dict(name="heun", steps=10, grid=GRID)
EULER = dict(name="euler", steps=20, grid=GRID)
POLICY = dict(group_size=16, clip=0.2, log_prob="sum")
FLOW_GRPO = (dict(name="flow_grpo", a=0.7, steps=10, grid=GRID), ("divergence_weight", 1.0), POLICY)
# method -> its own sampler of rollouts, what `hold` is there and its value, and what else it sets.
METHODS = {
    "flow_grpo": FLOW_GRPO,
    "flow_grpo_fast": FLOW_GRPO,
    "dance_grpo": (dict(name="dance_grpo", eta=0.3, steps=16, grid=GRID), ("divergence_weight", 1.0), POLICY),
    "mix_grpo": (
        dict(name="flow_grpo", a=0.7, steps=16, grid=GRID),
        ("divergence_weight", 1.0),
        dict(POLICY, window=4, window_every=5),
    ),
    "nft": (HEUN, ("divergence_weight", 1e-4), dict(group_size=16)),
    "dpo": (HEUN, ("beta", 1.0), dict(group_size=4, error="sum")),
    "kto": (HEUN, ("beta", 1.0), dict(group_size=4, error="sum")),
    "best_of": (HEUN, None, dict(group_size=4, policy="reference")),
    "refl": (EULER, ("pretraining_weight", 1.0), dict(stop=(15, 19), ceiling=None, reward_weight=0.1)),
    "draft": (EULER, ("pretraining_weight", 1.0), dict(steps=1, reward_weight=0.1)),
}
# What a watchdog looks at that the tuning does not: something that exploiting the one reward would cost.
HELD = dict(
    linear="quadratic",
    quadratic="linear",
    brightness="quadratic",
    compressibility="brightness",
    scene="brightness",
)
FAR = -1.0  # what the watchdog takes for far
LEAST_GAIN = -0.1  # of captions read right
CLIPPED = 0.9  # a policy of which so much is clipped moves too fast
FLAT = 0.98  # of groups that teach nothing: all alike are right, or none is, and the rest is noise
GRADIENT = ("refl", "draft")  # they read the data's examples and no groups
COMPARED = ("dpo", "kto", "best_of")  # they also learn from what was compared beforehand


def get_config(argument: str = "") -> ConfigDict:
    """Options: run = a finished run's folder; method = one of METHODS; reward = one of REWARDS (linear) or a reward model's
    folder; held = another, or none; data = a folder of comparisons; hold, guidance, divergence, spread: see above, a hold or
    divergence of -1 for its own, 0 for none; sampler = method or own; updates = steps; rank = of an adapter; tiny."""
    known = dict(
        run="", method="flow_grpo", reward="", held="", data="", hold=-1.0, guidance=0.0, divergence=FAR, spread=0.1
    )
    options = parse_argument(argument, **known, sampler="method", updates=300, rank=0, tiny=False)
    if not options.run:
        raise ValueError("Which run is tuned? Give --config=configs/preference.py:run=RUN_DIRECTORY.")
    config = defaults()
    theirs = adopt(config, options.run, "The run that is tuned")
    rollout, held, more = choose("method", options.method, METHODS)
    subject = options.data or options.reward or "linear"
    config.name = f"{theirs.name}_{options.method}_{pathlib.Path(subject).name}"
    config.steps = options.updates
    config.batch_size = 256
    config.steps_per_dispatch = 1
    guidance = dict(name="cfg", scale=options.guidance) if options.guidance else dict(name="none")
    config.method = dict(name=options.method, prediction=theirs.method.get("prediction", "velocity"), **more)
    if options.data:
        learn_from(config, theirs, options)
    else:
        config.method.rewards = rewards_of("reward", subject)
        config.method.rollout = dict(rollout, guidance=guidance)
    if held is not None:
        config.method[held[0]] = held[1] if options.hold < 0 else options.hold
    elif options.hold >= 0:
        raise ValueError(f"The method '{options.method}' has nothing that hold={options.hold} could set. Leave it out.")
    config.restore.student = reference_of_run(options.run, "The run that is tuned")
    config.optimizer = dict(name="adam", learning_rate=3e-4)
    config.ema = dict(ema=dict(name="warmup", decay=0.95))
    config.samplers = dict(default=dict(name="heun", steps=20, grid=GRID, role="ema", guidance=guidance))
    config.watchdog = dict(name="reference", guidance=guidance)
    shapes = theirs.data.name == "shapes" and options.reward != "scene"
    held = options.held or ("scene" if shapes else "none" if options.data else HELD.get(subject, "quadratic"))
    if held != "none":
        (watched,) = rewards_of("held", held).values()
        config.watchdog.rewards = {f"held_{pathlib.Path(held).name}": watched}
    if held == "scene":
        config.watchdog.least_gain = LEAST_GAIN
    if "clip" in config.method:
        config.watchdog.largest_clipped = CLIPPED
    if "group_size" in config.method:
        config.watchdog.largest_flat = FLAT
    own = choose("sampler", options.sampler, {"method": False, "own": True})
    if own:
        draw_as(config, theirs, options)
    else:
        if "clip" not in config.method and config.method.get("pretraining_weight", 1.0):
            # At others a network says nothing; a policy has its own grid, and a gradient alone that of its rollout.
            config.time = theirs.time.to_dict()
        if options.divergence:
            config.watchdog.largest_divergence = "far" if options.divergence == FAR else options.divergence
    if options.spread:
        config.watchdog.least_spread = options.spread
    config.when.log = schedule(every_steps=10)
    config.when.sample = schedule(at_percent=(10, 50, 100))
    config.when.evaluate = schedule(at_percent=tuple(range(10, 101, 10)))
    config.when.checkpoint = schedule(every_steps=100, at_percent=(100,))
    if options.rank:
        config.lora.rank = options.rank
    if options.tiny:
        config.name += "_tiny"
        config.steps, config.batch_size = 4, 32
        if "group_size" in config.method:
            config.method.group_size = min(8, config.method.group_size)
        config.watchdog.count, config.watchdog.steps = 32, 2
        config.watchdog.largest_flat = None  # a handful of groups may well be
        if not own:
            config.samplers.default.steps = 2
        config.when.log = schedule(every_steps=2)
        config.when.sample = config.when.evaluate = schedule(at_percent=(50, 100))
        config.when.checkpoint = schedule(every_steps=2)
    return config


def rewards_of(kind: str, word: str) -> dict[str, dict[str, Any]]:
    """One of REWARDS, or the score of a reward model's folder."""
    if word not in REWARDS and pathlib.Path(word.partition(":")[0]).is_dir():
        return dict(liked=dict(name="model", restore_from=word))
    return choose(kind, word, REWARDS)


def learn_from(config: ConfigDict, theirs: ConfigDict, options: ConfigDict) -> None:
    """Learns from a folder of comparisons: pictures of the run's size, captions in its words."""
    if options.method not in COMPARED or options.reward or options.sampler != "method":
        raise ValueError(
            f"data={options.data} with method={options.method}, reward={options.reward or 'none'}, sampler={options.sampler}: "
            f"comparisons are learnt from by {', '.join(COMPARED)}, which then draw nothing and know no reward. Train a "
            "reward model on them for the others (configs/reward_model.py), or leave the rest out."
        )
    folder = dict(name="comparisons", path=options.data, **like_run(theirs, options.run))
    config.data = dict(theirs.data, source=folder) if theirs.data.name == "encoded" else folder
    config.evaluators = {}  # the run's are of the run's data
    config.batch_size = 64
    for name in {"group_size", "policy"} & set(config.method):
        del config.method[name]


def draw_as(config: ConfigDict, theirs: ConfigDict, options: ConfigDict) -> None:
    """Draws, tunes and watches with the default sampler of the run itself."""
    if options.method not in GRADIENT or options.hold > 0 or options.guidance or options.divergence not in (0, FAR):
        raise ValueError(
            f"sampler=own with method={options.method}, hold={options.hold}, guidance={options.guidance}, divergence="
            f"{options.divergence}: a student of few steps is tuned by {' or '.join(GRADIENT)}, held by nothing, guided as it "
            "was made to be, and has no divergence. Leave hold, guidance and divergence out."
        )
    sampler = ConfigDict(theirs.samplers[default_name(theirs.samplers)].to_dict())
    config.samplers = dict(default=sampler.to_dict())
    del sampler["role"]
    config.method.rollout = sampler
    config.method.pretraining_weight = 0.0
    if "stop" in config.method:
        config.method.stop = (0, sampler.steps - 1)
    config.watchdog.sampler = sampler
    del config.watchdog["guidance"]


def sweep() -> list[hyper.Point]:
    """Every method."""
    return hyper.sweep(":method", METHODS)
