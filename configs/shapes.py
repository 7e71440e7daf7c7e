"""Text to image on scenes that a parser can mark: "two red circles", "a blue ring left of a green square".

    python -m flowjax.main --config=configs/shapes.py                         # 16 x 16, large objects
    python -m flowjax.main --config=configs/shapes.py:resolution=32           # objects of both sizes
    python -m flowjax.main --config=configs/shapes.py:network=dit
    python -m flowjax.main --config=configs/shapes.py:network=small           # the teacher of experiments/distillation
    python -m flowjax.main --config=configs/shapes.py:accelerator             # 64 x 64, up to six objects, words, all captions
    python -m flowjax.main --config=configs/shapes.py --config.sample.prompts='("a red circle", "two blue squares")'

Below 32 x 32 small objects are three pixels wide and their kinds cannot be told apart, so there are none. Captions are read
by an encoder trained along. The network predicts the clean picture and its loss is taken in velocity, whose factor
1 / (1 - t)^2 makes the last times count most; so times are drawn towards the noise, where a scene is laid out. In a picture of
twice the side four cells say what one did, and their noise averages to half: the same scene is laid out where t / (1 - t) is
half as large.
"""

import math
from typing import Any

from flowjax import sweep as hyper
from flowjax.choices import build, choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule, set_value
from flowjax.data import SOURCES

NETWORKS = {
    "dit": dict(name="dit", width=128, depth=6, heads=4, patch=4),
    "mmdit": dict(name="mmdit", width=128, depth=6, heads=4, patch=4, qk_norm="none"),
    "unet": dict(name="unet", channels=32, multipliers=(1, 2, 3), blocks=1, attention=(8,), head_channels=32),
    # A quarter of its size, and smooth in time, for students that follow its derivative in time (configs/fashion.py). Its
    # cells grow with the picture, which costs no more than 16 x 16.
    "small": dict(
        name="unet", channels=16, multipliers=(1, 2, 3), blocks=1, attention=(8,), head_channels=16, time_scale=10.0
    ),
}
TINY = {
    "dit": dict(width=32, depth=2, heads=2),
    "mmdit": dict(width=32, depth=2, heads=2),
    "unet": dict(channels=8, multipliers=(1, 1), attention=(8,), head_channels=8),
    "small": dict(channels=8, multipliers=(1, 1), attention=(8,), head_channels=8),
}


def easy_first(config: ConfigDict, **easier: Any) -> dict[str, Any]:
    """A curriculum: scenes with some options made easier give way, in the first 30% of the run, to those of the config.

    Captions keep the length of the config's. Pictures of two sizes take turns by whole dispatches.
    """
    hard = config.data.to_dict()
    easy = hard | dict(easier, text_length=build("data source", hard, SOURCES).spec.text_length)
    turns = {} if easy["resolution"] == hard["resolution"] else dict(hold=config.steps_per_dispatch)
    return dict(name="mix", sources=(easy, hard), schedule=((0.0, (1, 0)), (0.3, (0, 1)), (1.0, (0, 1))), **turns)


def one_object_first(config: ConfigDict) -> dict[str, Any]:
    """Scenes of one object first."""
    return easy_first(config, objects=(1, 1))


def small_pictures_first(config: ConfigDict) -> dict[str, Any]:
    """Pictures of half the side first, of large objects: small ones would be specks."""
    return easy_first(config, resolution=config.data.resolution // 2, sizes=("large",))


def short_captions_first(config: ConfigDict) -> dict[str, Any]:
    """Captions of colours and kinds first, without relations; scenes then have nothing that captions do not say."""
    return easy_first(config, captions="short", relations=0.0, textured=0.0)


# What the ablations change, one at a time: config key -> value, or a function of the config that gives the value. Times
# end at 0.95 as in the config itself, and begin at 0.05 where the factor of the loss in velocity has a pole at noise. The
# variance-preserving path is nearly all noise up to t = 0.3; its times have the signal-to-noise ratios of the others.
CHANGES = {
    "none": {},
    "uniform_time": {"time": dict(name="uniform", high=0.95)},
    "logit_normal_time": {"time": dict(name="logit_normal", high=0.95)},
    "shifted_time": {"time": dict(name="uniform", shift=2.0, high=0.95)},
    "trigonometric_path": {"path": dict(name="trigonometric")},
    "vp_path": {"path": dict(name="vp"), "time": dict(name="logit_normal", mean=0.35, std=0.65, low=0.05, high=0.95)},
    "velocity_prediction": {"method.prediction": "velocity"},
    "noise_prediction": {
        "method.prediction": "noise",
        "time": dict(name="logit_normal", mean=-0.8, std=0.8, low=0.05, high=0.95),
    },
    "alignment": {
        "method.alignment": dict(
            encoder=dict(name="efficientnet_lite0", layer="b4", input_size=64), layer=2, weight=0.5
        )
    },
    "curriculum": {"data": one_object_first},
    "resolution_curriculum": {"data": small_pictures_first},
    "caption_curriculum": {"data": short_captions_first},
    "adam": {"optimizer": dict(name="adam", learning_rate=2e-3, warmup_steps=100, decay="cosine", final_fraction=0.02)},
    "text_transformer": {"text": dict(name="transformer", width=64, depth=2, heads=2)},
}
ABLATION_STEPS = 1_000


def get_config(argument: str = "") -> ConfigDict:
    """Options: tiny; network = one of NETWORKS; resolution; objects = the most in a scene; captions = short, both, full;
    change = one of the ablations; accelerator.
    """
    options = parse_argument(
        argument,
        tiny=False,
        network="unet",
        resolution=16,
        objects=2,
        captions="short",
        change="none",
        accelerator=False,
    )
    change = choose("change", options.change, CHANGES)
    network = choose("network", options.network, NETWORKS)
    resolution = 16 if options.tiny else options.resolution
    config = defaults()
    config.name = "shapes" if options.network == "unet" else f"shapes_{options.network}"
    config.steps = 8_000
    config.batch_size = 64
    config.steps_per_dispatch = 10
    config.data = dict(
        name="shapes",
        resolution=resolution,
        objects=(1, options.objects),
        captions=options.captions,
        # A short caption says nothing of textures: they would be noise that the model has to learn.
        textured=0.0 if options.captions == "short" else 0.5,
    )
    config.text = dict(name="embedding", width=64)
    config.network = network
    if resolution < 32:
        config.data.sizes, config.data.loose = ("large",), 0.0
        if "patch" in config.network:
            config.network.patch = 2
    if options.network == "small":
        config.network.patch = max(1, resolution // 16)
    config.method = dict(name="flow_matching", prediction="data", loss="velocity", label_dropout=0.1)
    config.time = times(resolution)
    config.optimizer = dict(name="muon", learning_rate=1e-2, warmup_steps=100, decay="cosine", final_fraction=0.02)
    config.ema = dict(ema=dict(name="power", std=0.05))
    guided = dict(name="heun", steps=16, grid=dict(name="uniform"), guidance=dict(name="cfg", scale=1.5), role="ema")
    config.samplers = dict(default=guided)
    config.when.log = schedule(every_steps=100)
    config.when.sample = schedule(at_percent=(5, 10, 25, 50, 100))
    config.when.evaluate = schedule(at_percent=(25, 50, 100))
    config.when.checkpoint = schedule(every_steps=1_000, at_percent=(100,))
    config.sample = dict(count=48, prompts=())
    config.evaluation = dict(count=512, batch_size=128)
    config.evaluators = dict(
        captions=dict(name="caption_accuracy"),
        sliced_w2=dict(name="sliced_w2"),
    )
    if options.accelerator:
        if (options.network, options.resolution, options.objects, options.captions) != ("unet", 16, 2, "short"):
            raise ValueError(
                "'accelerator' sets network, resolution, objects and captions itself: leave these options out."
            )
        for_an_accelerator(config)
    if options.change != "none":
        config.name += f"_{options.change}"
    for key, value in change.items():
        set_value(config, key, value(config) if callable(value) else value)
    if options.tiny:
        config.name += "_tiny"
        config.steps, config.batch_size, config.steps_per_dispatch = 8, 16, 4
        if "hold" in config.data:
            config.data.hold = config.steps_per_dispatch
        config.network.update(TINY[options.network])
        config.text.width = 16
        config.optimizer.warmup_steps = 2
        config.when.log = schedule(every_steps=4)
        config.when.sample = config.when.evaluate = schedule(at_percent=(100,))
        config.samplers.default.steps = 2
        config.sample.count = 8
        config.evaluation = dict(count=16, batch_size=16)
        config.evaluators.captions.real = 32
    return config


def times(resolution: int) -> dict[str, Any]:
    """Of the training, for pictures of this side: see the module header."""
    return dict(name="logit_normal", mean=round(-0.8 - math.log(resolution / 16), 3), std=0.8, high=0.95)


def for_an_accelerator(config: ConfigDict) -> None:
    """Everything that a scene can have, at 64 x 64, by a U-Net of 64 million parameters."""
    config.name += "_accelerator"
    config.precision = "bfloat16"
    config.steps = 16_000
    config.batch_size = 256
    config.steps_per_dispatch = 20
    config.loader.threads = 12
    config.data = dict(name="shapes", resolution=64, objects=(1, 6), captions="both", textured=0.5, words=0.25)
    config.time = times(64)
    config.text = dict(name="transformer", width=256, depth=4, heads=4)
    config.network = dict(
        name="unet", channels=96, multipliers=(1, 2, 3, 4), blocks=2, attention=(16, 8), head_channels=64
    )
    config.evaluation = dict(count=2_000, batch_size=500)


def sweep() -> list[hyper.Point]:
    """The ablations: one change at a time, all with the same number of updates, looked at when they end."""
    fixed = {"steps": ABLATION_STEPS, "when.evaluate.at_percent": (100,), "when.sample.at_percent": (100,)}
    return hyper.product(hyper.sweep(":change", CHANGES), *(hyper.fix(key, value) for key, value in fixed.items()))
