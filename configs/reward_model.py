"""A reward model: a score learnt from comparisons.

    python -m flowjax.main --config=configs/reward_model.py                           # points with a known score
    python -m flowjax.main --config=configs/reward_model.py:data=shapes               # 16 x 16: does it fit its caption?
    python -m flowjax.main --config=configs/reward_model.py:data=shapes,kind=degraded
    python -m flowjax.main --config=configs/reward_model.py:data=shapes,examples=3,loss=ranking
    python -m flowjax.main --config=configs/reward_model.py:data=shapes,run=runs/shapes        # sees through a finished flow
    python -m flowjax.main --config=configs/reward_model.py:data=shapes,kind=style,features=efficientnet_lite0
    python -m flowjax.main --config=configs/reward_model.py:data=FOLDER               # pictures that people compared

A FOLDER has comparisons.jsonl (flowjax/data/comparisons.py); `python -m flowjax.data.compare` writes one. Its captions are
read word by word, or as the flow reads them that is seen through. Held-out accuracy stands beside the best there can be, where
the noise of the comparisons is known.

`features` are those of `python -m flowjax.data.prepare efficientnet_lite0`. On a CPU look at smaller pictures than it was made
for: --config.method.scorer.trunk.input_size=64.
"""

from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule
from flowjax.methods.finished import config_of_run, like_run

DIT = dict(name="dit", width=48, depth=3, heads=2)
KINDS = ("caption", "degraded", "style")


def get_config(argument: str = "") -> ConfigDict:
    """Options: data = points, shapes, emoji or a folder; kind = caption, degraded, style (of shapes); loss = pair, tie,
    ranking; examples = of a comparison; run = a finished flow whose tokens are scored, or features = a published image network
    whose vector is, beside that of the caption; size = pixels of a side (16 for shapes, else 32, or the flow's); tiny.
    """
    options = parse_argument(
        argument, data="points", kind="caption", loss="pair", examples=2, run="", features="", size=0, tiny=False
    )
    seen = [name for name in ("run", "features") if options[name]]
    if len(seen) > 1 or (seen and options.data == "points"):
        raise ValueError(
            f"data={options.data} with {' and '.join(f'{name}={options[name]}' for name in seen)}: pictures are seen through a "
            "flow, through a published network, or neither; points are scored as they are."
        )
    choose("kind", options.kind, dict.fromkeys(KINDS))
    config = defaults()
    config.name = "reward" if options.data == "points" else f"reward_{options.data.strip('/').rpartition('/')[2]}"
    theta = dict(theta=2.0) if options.loss == "tie" else {}
    known = dict(examples=options.examples, temperature=0.5, **theta)
    sources = {
        "points": dict(name="compared_points", score=dict(name="linear", direction=(1.5, -1.0)), **known),
        "shapes": dict(name="compared_shapes", kind=options.kind, resolution=options.size or 16, **known),
        "emoji": dict(name="compared_emoji", size=options.size or 32, tokenizer=dict(name="words"), **known),
    }
    theirs = config_of_run(options.run, "The trunk of the scorer") if options.run else None
    shown = dict(size=options.size or 32, tokenizer=dict(name="words"))
    if theirs is not None and options.data not in sources:
        shown = like_run(theirs, options.run) | (dict(size=options.size) if options.size else {})
    folder = dict(name="comparisons", path=options.data, **shown)
    if options.size < 32 and options.kind != "style":  # below 32 x 32 the kind of a small object cannot be told
        sources["shapes"]["sizes"] = ("large",)
    config.data = sources.get(options.data, folder)
    if options.data == "points":
        scorer = dict(name="mlp")
    elif options.features:
        scorer = dict(name="features", trunk=dict(name=options.features))
    elif theirs is not None:
        for name in ("resolution", "objects", "sizes"):  # pictures as the flow has seen them
            if options.data == "shapes" and name in theirs.data:
                config.data[name] = theirs.data[name]
        scorer = dict(name="joint", trunk=dict(name="run", restore_from=options.run))
    else:
        side = options.size or (16 if options.data == "shapes" else 32)
        network = dict(DIT, patch=max(2, side // 8))  # 64 tokens
        trunk = dict(name="network", network=network, text=dict(name="transformer", width=64, depth=1))
        scorer = dict(name="joint", trunk=trunk)
    rate = dict(warmup_steps=100, decay="cosine", final_fraction=0.02)
    config.optimizer = dict(name="adam", learning_rate=1e-3, **rate)
    if scorer.get("trunk", {}).get("name") == "network":  # it learns to read captions several times sooner
        config.optimizer = dict(name="muon", learning_rate=5e-3, **rate)
    config.method = dict(name="reward_model", scorer=scorer, loss=options.loss, **theta)
    config.steps = 2_000 if options.data == "points" else 6_000
    config.batch_size = 256 if options.data == "points" else 64
    config.steps_per_dispatch = 10
    config.ema = dict(ema=dict(name="warmup", decay=0.99))
    config.samplers = dict(default=dict(name="scores", role="ema"))
    config.evaluators = dict(comparisons=dict(name="comparisons"))
    config.evaluation = dict(count=4_000, batch_size=500)
    config.sample.count = 32
    config.when.log = schedule(every_steps=100)
    config.when.sample = schedule(at_percent=() if options.data == "points" else (100,))
    config.when.evaluate = schedule(at_percent=(25, 50, 75, 100))
    config.when.checkpoint = schedule(every_steps=1_000, at_percent=(100,))
    if options.data not in sources:
        config.evaluation.count = 500
        config.loader.threads = 2
    if options.tiny:
        config.name += "_tiny"
        config.steps, config.batch_size, config.steps_per_dispatch = 8, 16, 4
        config.optimizer.warmup_steps = 2
        config.when.log = schedule(every_steps=4)
        config.when.evaluate = schedule(at_percent=(100,))
        config.when.checkpoint = schedule(every_steps=4)
        config.evaluation = dict(count=32, batch_size=16)
        config.sample.count = 8
        if scorer.get("trunk", {}).get("name") == "network":
            config.method.scorer.trunk.network.update(width=16, depth=2, heads=2)
            config.method.scorer.trunk.text.update(width=16, heads=2)
    return config
