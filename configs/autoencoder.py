"""A KL autoencoder, and flows in its latent space.

    python -m flowjax.main --config=configs/autoencoder.py --workdir=runs/autoencoder
    python -m flowjax.main --config=configs/autoencoder.py:latents=runs/autoencoder --workdir=runs/latent_flow

Digits, 8 x 8 x 1, become latents of 4 x 4 x 2.
"""

from flowjax.config import ConfigDict, defaults, parse_argument, schedule


def get_config(argument: str = "") -> ConfigDict:
    """Options: tiny; latents = the run directory of an autoencoder, on whose latents a flow is trained."""
    options = parse_argument(argument, tiny=False, latents="")
    config = defaults()
    config.steps_per_dispatch = 10
    config.when.log = schedule(every_steps=100)
    config.when.checkpoint = schedule(at_percent=(50, 100))
    config.evaluators = dict(frechet=dict(name="frechet"))
    if options.latents:
        flow(config, options.latents)
    else:
        autoencoder(config)
    if options.tiny:
        shrink(config)
    return config


def autoencoder(config: ConfigDict) -> None:
    """Digits to latents."""
    config.name = "autoencoder"
    config.steps = 1_500
    config.batch_size = 64
    config.data = dict(name="digits", shift=1)
    config.network = dict(
        name="convolutional", channels=32, multipliers=(1, 2), blocks=1, latent_channels=2, attention=True
    )
    config.method = dict(
        name="autoencoder",
        kl_weight=1e-4,
        adversarial_weight=0.1,
        adversarial_start=300,
        discriminator=dict(name="patch", channels=16, layers=2),
        discriminator_optimizer=dict(name="adam", learning_rate=5e-4, b1=0.5),
    )
    config.optimizer = dict(name="adam", learning_rate=2e-3, warmup_steps=50, decay="cosine", final_fraction=0.05)
    config.ema = dict(ema=dict(name="power", std=0.05))
    config.samplers = dict(default=dict(name="reconstruct", role="ema"), prior=dict(name="prior", role="ema"))
    config.evaluators.psnr = dict(name="psnr")
    config.evaluation = dict(count=350, batch_size=350)  # of the 359 held-out digits
    config.sample.count = 50


def flow(config: ConfigDict, run: str) -> None:
    """A flow on the latents of a finished run, whose data it takes."""
    config.name = "latent_flow"
    config.steps = 6_000
    config.batch_size = 256
    config.steps_per_dispatch = 50
    # Encoded once, not at every step: an epoch is five steps, and the encoder costs more than the flow.
    config.data = dict(name="latents", source=dict(name="digits"), autoencoder=run, cache=f"{run}/moments")
    config.network = dict(name="mlp", width=512, depth=4)
    config.optimizer = dict(name="adam", learning_rate=2e-3, warmup_steps=50, decay="cosine")
    config.ema = dict(ema=dict(name="power", std=0.05))
    config.samplers.default.guidance = dict(name="cfg", scale=1.5)
    config.evaluators.class_accuracy = dict(name="class_accuracy")
    config.evaluation = dict(count=900, batch_size=900)
    config.sample.count = 100


def shrink(config: ConfigDict) -> None:
    """The same in seconds."""
    config.name += "_tiny"
    config.steps = 20
    config.batch_size = 32
    config.steps_per_dispatch = 5
    config.optimizer.warmup_steps = 5
    config.when.log = schedule(every_steps=5)
    config.when.sample = schedule(at_percent=(100,))
    config.evaluation = dict(count=50, batch_size=50)
    config.sample.count = 20
    if config.method.name == "autoencoder":
        config.network.update(channels=8, attention=False)
        config.method.adversarial_start = 0  # one program to compile instead of two
        config.method.discriminator.channels = 8
    else:
        config.network.update(width=64, depth=2)
        config.samplers.default.steps = 4
