"""Emoji from words in three styles: "google style: red apple", "fluent style: sleeping cat".

    python -m flowjax.data.prepare emoji
    python -m flowjax.data.prepare minilm
    python -m flowjax.data.prepare efficientnet_lite0
    python -m flowjax.main --config=configs/emoji.py                  # 32 x 32
    python -m flowjax.main --config=configs/emoji.py:accelerator      # 64 x 64, on one accelerator

Whole families of emoji are held out, with all their skin tones and variants. Many held-out names hold words that training
never shows, so captions are read with MiniLM, which knows them. `text=words` needs no weights: it learns the words of the
training captions, and all others are one unknown word.
"""

from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule

CAPTIONED = dict(name="emoji", size=32, labels=False, variants=True)
WORDS, WHOLE = ({**CAPTIONED, "tokenizer": dict(name=name)} for name in ("words", "bytes"))
TEXTS = {
    "words": (WORDS, dict(name="transformer", width=192, depth=2, heads=4)),
    "minilm": (dict(name="encoded", source=WHOLE, text_length=24), dict(name="none")),
}
# On a CPU; on an accelerator; in a test.
NETWORKS = {
    "unet": dict(name="unet", patch=2, channels=32, multipliers=(1, 2, 3), blocks=1, attention=(8,), head_channels=32),
    "dit": dict(name="dit", width=192, depth=8, heads=6, patch=4),
}
ACCELERATOR = {
    "unet": dict(patch=1, channels=128, multipliers=(1, 2, 3, 4), blocks=2, attention=(16, 8), head_channels=64),
    "dit": dict(width=512, depth=12, heads=8),
}
TINY = {
    "unet": dict(patch=2, channels=8, multipliers=(1, 1), attention=(16,), head_channels=8),
    "dit": dict(width=32, depth=1, heads=2, patch=8),
}


def get_config(argument: str = "") -> ConfigDict:
    """Options: tiny; accelerator; text = minilm or words; network = unet or dit."""
    options = parse_argument(argument, tiny=False, accelerator=False, text="minilm", network="unet")
    data, text = choose("text", options.text, TEXTS)
    config = defaults()
    config.name = "_".join(["emoji", *({options.text, options.network} - {"minilm", "unet"})])
    config.steps = 6_000
    config.batch_size = 64
    config.steps_per_dispatch = 10
    config.data, config.text = data, text
    config.network = dict(choose("network", options.network, NETWORKS))
    config.method = dict(name="flow_matching", prediction="data", loss="velocity", label_dropout=0.1)
    config.time = dict(name="logit_normal", mean=-0.5, high=0.95)
    config.optimizer = dict(name="muon", learning_rate=1e-2, warmup_steps=500, decay="cosine", final_fraction=0.02)
    config.ema = dict(ema=dict(name="power", std=0.05))
    guided = dict(name="heun", steps=20, grid=dict(name="uniform"), guidance=dict(name="cfg", scale=3.0), role="ema")
    config.samplers = dict(default=guided)
    config.when.log = schedule(every_steps=200)
    config.when.sample = schedule(at_percent=(2, 5, 10, 25, 50, 75, 100))
    config.when.evaluate = schedule(at_percent=(50, 100))
    config.when.checkpoint = schedule(every_steps=500, at_percent=(100,))
    config.sample = dict(count=48, prompts=())
    config.evaluation = dict(count=600, batch_size=100)
    features = dict(name="efficientnet_lite0", layer="b10")
    config.evaluators = dict(
        agreement=dict(name="caption_agreement", features=features),
        frechet=dict(name="frechet", features=features, split="test"),
        kid=dict(name="kid", features=features, split="test", subset_size=200),
        copies=dict(name="nearest_neighbour", features=features),
    )
    if options.accelerator:
        config.name += "_64"
        config.precision = "bfloat16"
        config.batch_size = 256
        config.steps_per_dispatch = 20
        pictures = config.data if options.text == "words" else config.data.source
        pictures.size = 64
        config.network.update(ACCELERATOR[options.network])
        if options.text == "words":
            config.text.update(width=384, depth=4, heads=6)
    if options.tiny:
        config.name += "_tiny"
        config.steps, config.batch_size, config.steps_per_dispatch = 8, 16, 4
        config.network.update(TINY[options.network])
        if options.text == "words":
            config.text.update(width=16, depth=1, heads=2)
        config.optimizer.warmup_steps = 2
        config.when.log = schedule(every_steps=4)
        config.when.sample = config.when.evaluate = schedule(at_percent=(100,))
        config.samplers.default.steps = 2
        config.sample.count = 8
        config.evaluation = dict(count=32, batch_size=16)
        config.evaluators = dict(sliced_w2=dict(name="sliced_w2"))
    return config
