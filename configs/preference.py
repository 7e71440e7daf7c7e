"""A finished run, tuned by a reward of its own samples.

    python -m flowjax.main --config=configs/points.py --workdir=runs/points
    python -m flowjax.main --config=configs/preference.py:run=runs/points                          # Flow-GRPO, to the right
    python -m flowjax.main --config=configs/preference.py:run=runs/points,method=dance_grpo,reward=quadratic
    python -m flowjax.main --config=configs/preference.py:run=runs/digits,reward=brightness,rank=16    # an adapter
    python -m flowjax.sweep --config=configs/preference.py:run=runs/points --out=runs/preference       # every method

It goes on from the run's parameters with the run's network, data and path; conditions of the data are those that samples are
drawn under. `weight` is that of the divergence from where it began: a reward alone is worth any drift. Log-probabilities are
summed over the elements of a sample, so the divergence is that of whole steps.
"""

from flowjax import sweep as hyper
from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule
from flowjax.methods.finished import adopt, reference_of_run

REWARDS = {
    "linear": dict(right=dict(name="linear", direction=(1.0, 0.0))),
    "quadratic": dict(centred=dict(name="quadratic")),
    "brightness": dict(bright=dict(name="brightness")),
}
GRID = dict(name="uniform")
# method -> its own sampler of rollouts, and what it changes.
METHODS = {
    "flow_grpo": (dict(name="flow_grpo", a=0.7, steps=10, grid=GRID), {}),
    "dance_grpo": (dict(name="dance_grpo", eta=0.3, steps=16, grid=GRID), {}),
    "mix_grpo": (dict(name="flow_grpo", a=0.7, steps=16, grid=GRID), dict(window=4, window_every=5)),
}


def get_config(argument: str = "") -> ConfigDict:
    """Options: run = a finished run's folder; method = one of METHODS; reward = one of REWARDS; weight; rank; tiny."""
    options = parse_argument(argument, run="", method="flow_grpo", reward="linear", weight=1.0, rank=0, tiny=False)
    if not options.run:
        raise ValueError("Which run is tuned? Give --config=configs/preference.py:run=RUN_DIRECTORY.")
    config = defaults()
    theirs = adopt(config, options.run, "The run that is tuned")
    rollout, changes = choose("method", options.method, METHODS)
    config.name = f"{theirs.name}_{options.method}_{options.reward}"
    config.steps = 300
    config.batch_size = 256
    config.steps_per_dispatch = 1
    config.method = dict(
        name=options.method,
        rewards=choose("reward", options.reward, REWARDS),
        rollout=dict(rollout),
        prediction=theirs.method.get("prediction", "velocity"),
        group_size=16,
        clip=0.2,
        log_prob="sum",
        divergence_weight=options.weight,
        **changes,
    )
    config.restore.student = reference_of_run(options.run, "The run that is tuned")
    config.optimizer = dict(name="adam", learning_rate=3e-4)
    config.ema = dict(ema=dict(name="warmup", decay=0.95))
    config.samplers = dict(default=dict(name="heun", steps=20, grid=GRID, role="ema"))
    config.when.log = schedule(every_steps=10)
    config.when.sample = schedule(at_percent=(10, 50, 100))
    config.when.evaluate = schedule(at_percent=(100,))
    config.when.checkpoint = schedule(every_steps=100, at_percent=(100,))
    if options.rank:
        config.lora.rank = options.rank
    if options.tiny:
        config.name += "_tiny"
        config.steps, config.batch_size = 4, 32
        config.method.group_size = 8
        config.samplers.default.steps = 2
        config.when.log = schedule(every_steps=2)
        config.when.sample = config.when.evaluate = schedule(at_percent=(100,))
        config.when.checkpoint = schedule(every_steps=2)
    return config


def sweep() -> list[hyper.Point]:
    """Every method."""
    return hyper.sweep(":method", METHODS)
