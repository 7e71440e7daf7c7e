"""A flow on two-dimensional points: trains in a minute or two on a laptop, and its exact answer is known.

    python -m flowjax.main --config=configs/points.py
    python -m flowjax.main --config=configs/points.py:data=moons,preset=edm
    python -m flowjax.sweep --config=configs/points.py --out=runs/points

The sweep is every preset, and the first one with its noise and data paired by optimal transport, with three seeds each.
"""

from flowjax import sweep as hyper
from flowjax.config import ConfigDict, defaults, parse_argument, schedule
from flowjax.methods.presets import PRESETS, apply_preset

SEEDS = range(3)


def get_config(argument: str = "") -> ConfigDict:
    """Options: tiny; data = mixture, moons, checkerboard or spirals; preset = one of flowjax.methods.presets."""
    options = parse_argument(argument, tiny=False, data="mixture", preset="rectified_flow")
    config = defaults()
    config.name = f"points_{options.data}_{options.preset}"
    config.steps = 20_000
    config.batch_size = 256
    config.steps_per_dispatch = 100
    config.data = dict(name=options.data)
    config.network = dict(name="mlp", width=256, depth=3)
    config.optimizer = dict(name="adam", learning_rate=2e-3, decay="cosine")
    config.ema = dict(ema=dict(name="warmup", decay=0.999))
    config.when.log = schedule(every_steps=500)
    config.when.checkpoint = schedule(every_steps=5_000, at_percent=(100,))
    config.sample.count = 2_000
    config.evaluation = dict(count=5_000, batch_size=5_000)
    config.evaluators = dict(sliced_w2=dict(name="sliced_w2"))
    if options.data == "mixture":
        config.evaluators.mode_weights = dict(name="mode_weights")
    apply_preset(config, options.preset)
    if config.path.name == "edm":
        # Equal steps in t take sigma from 80 to 15 in the first of twenty: twice the error of the sampler's own grid.
        config.samplers.default.grid = dict(name="karras")
    if options.tiny:
        config.name += "_tiny"
        config.steps = 60
        config.steps_per_dispatch = 10
        config.network.width = 32
        config.when.log = schedule(every_steps=20)
        config.sample.count = 200
        config.evaluation = dict(count=500, batch_size=500)
    return config


def sweep() -> list[hyper.Point]:
    """One method, every preset; and two couplings of the first."""
    presets = hyper.sweep(":preset", PRESETS)
    transport = hyper.product(hyper.fix(":preset", "rectified_flow"), hyper.fix("coupling.name", "optimal_transport"))
    return hyper.product(hyper.chain(presets, transport), hyper.sweep("seed", SEEDS))
