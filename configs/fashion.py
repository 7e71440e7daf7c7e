"""Class-conditional Fashion-MNIST, 28 x 28, by a transformer that a CPU can train: the teacher of experiments/distillation.

python -m flowjax.data.prepare fashion_mnist
python -m flowjax.main --config=configs/fashion.py --workdir=runs/fashion
python -m flowjax.main --config=configs/fashion.py:network=unet
"""

from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule

NETWORKS = {
    "dit": dict(name="dit", width=96, depth=3, heads=4, patch=7),  # an update of 64 takes a core 40 ms
    "unet": dict(name="unet", channels=32, multipliers=(1, 2, 2), blocks=1, attention=(7,), head_channels=32),
}
TINY = {
    "dit": dict(width=32, depth=2, heads=2),
    "unet": dict(channels=8, multipliers=(1, 1), attention=(), head_channels=8),
}
# The highest frequency of its time embedding. At the usual 1000 the network's derivative in time is that of waves that it
# has not learnt to ignore, and students that follow a derivative (continuous consistency, MeanFlow) follow the waves.
TIME_SCALE = 10.0


def get_config(argument: str = "") -> ConfigDict:
    """Options: tiny; network = dit or unet."""
    options = parse_argument(argument, tiny=False, network="dit")
    config = defaults()
    config.name = "fashion" if options.network == "dit" else f"fashion_{options.network}"
    config.steps = 10_000
    config.batch_size = 64
    config.steps_per_dispatch = 10
    config.data = dict(name="fashion_mnist")
    config.network = dict(choose("network", options.network, NETWORKS), time_scale=TIME_SCALE)
    config.optimizer = dict(name="muon", learning_rate=1e-2, warmup_steps=100, decay="cosine", final_fraction=0.02)
    config.ema = dict(ema=dict(name="power", std=0.05))
    config.time = dict(name="logit_normal")
    guided = dict(name="heun", steps=16, grid=dict(name="uniform"), guidance=dict(name="cfg", scale=1.5), role="ema")
    config.samplers = dict(default=guided)
    config.when.log = schedule(every_steps=100)
    config.when.sample = schedule(at_percent=(5, 10, 25, 50, 100))
    config.when.evaluate = schedule(at_percent=(25, 50, 100))
    config.when.checkpoint = schedule(every_steps=1_000, at_percent=(100,))
    config.sample.count = 100
    config.evaluation = dict(count=2_000, batch_size=500)
    config.evaluators = dict(
        frechet=dict(name="frechet", features="fashion_mnist"),
        kid=dict(name="kid", features="fashion_mnist", subset_size=500),
        precision_recall=dict(name="precision_recall", features="fashion_mnist"),
        class_accuracy=dict(name="class_accuracy", features="fashion_mnist"),
    )
    if options.tiny:
        config.name += "_tiny"
        config.steps, config.batch_size, config.steps_per_dispatch = 8, 16, 4
        config.network.update(TINY[options.network])
        config.optimizer.warmup_steps = 2
        config.when.log = schedule(every_steps=4)
        config.when.sample = config.when.evaluate = schedule(at_percent=(100,))
        config.samplers.default.steps = 2
        config.sample.count = 20
        config.evaluation = dict(count=40, batch_size=40)
        config.evaluators = dict(sliced_w2=dict(name="sliced_w2"))
    return config
