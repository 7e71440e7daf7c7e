"""Class-conditional handwritten digits, 8 x 8: legible samples and their figures in about two minutes on two CPU cores.

    python -m flowjax.main --config=configs/digits.py
    python -m flowjax.main --config=configs/digits.py:preset=edm
    python -m flowjax.main --config=configs/digits.py:network=dit

The dense network is the default because a training image costs it least.
"""

from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule
from flowjax.methods.presets import apply_preset

# name -> (network, batch size, updates, peak learning rate).
NETWORKS = {
    "mlp": (dict(name="mlp", width=512, depth=4), 256, 6_000, 2e-3),
    "dit": (dict(name="dit", width=128, depth=4, heads=4, patch=2), 64, 3_000, 2e-3),
    "unet": (dict(name="unet", channels=32, multipliers=(1, 2), blocks=1, attention=()), 64, 1_500, 1e-3),
}
TINY = {
    "mlp": dict(width=64, depth=2),
    "dit": dict(width=32, depth=1, heads=2),
    "unet": dict(channels=8, multipliers=(1,)),
}


def get_config(argument: str = "") -> ConfigDict:
    """Options: tiny; preset = one of flowjax.methods.presets; network = mlp, dit or unet."""
    options = parse_argument(argument, tiny=False, preset="rectified_flow", network="mlp")
    network, batch_size, steps, learning_rate = choose("network", options.network, NETWORKS)
    config = defaults()
    chosen = [o for o, usual in ((options.preset, "rectified_flow"), (options.network, "mlp")) if o != usual]
    config.name = "_".join(["digits", *chosen])
    config.steps = steps
    config.batch_size = batch_size
    config.steps_per_dispatch = 50
    config.data = dict(name="digits")
    config.network = network
    config.optimizer = dict(name="adam", learning_rate=learning_rate, warmup_steps=50, decay="cosine")
    config.ema = dict(ema=dict(name="power", std=0.05))
    apply_preset(config, options.preset)

    grid = "karras" if config.path.name == "edm" else "uniform"
    config.samplers = dict(
        default=dict(name="heun", steps=20, grid=dict(name=grid), guidance=dict(name="cfg", scale=1.5), role="ema"),
        plain=dict(name="heun", steps=20, grid=dict(name=grid), guidance=dict(name="none"), role="ema"),
        fast=dict(name="dpmpp_2m", steps=8, grid=dict(name=grid), guidance=dict(name="cfg", scale=1.5), role="ema"),
    )
    config.when.log = schedule(every_steps=100)
    config.when.sample = schedule(at_percent=(2, 10, 30, 100))
    config.when.checkpoint = schedule(at_percent=(50, 100))
    config.sample.count = 100
    config.evaluation = dict(count=900, batch_size=900)  # half of the digits there are: the floor takes the other half
    config.evaluators = dict(
        frechet=dict(name="frechet"),
        kid=dict(name="kid", subset_size=400),
        precision_recall=dict(name="precision_recall"),
        class_accuracy=dict(name="class_accuracy"),
        nearest_neighbour=dict(name="nearest_neighbour"),
        sliced_w2=dict(name="sliced_w2"),
    )
    if options.tiny:
        config.name += "_tiny"
        config.steps = 40
        config.batch_size = 32
        config.steps_per_dispatch = 10
        config.network.update(TINY[options.network])
        config.optimizer.warmup_steps = 5
        config.when.log = schedule(every_steps=10)
        config.when.sample = schedule(at_percent=(100,))
        config.samplers.default.steps = config.samplers.plain.steps = config.samplers.fast.steps = 4
        config.sample.count = 20
        config.evaluation = dict(count=100, batch_size=100)
        config.evaluators.kid.subset_size = 50
    return config
