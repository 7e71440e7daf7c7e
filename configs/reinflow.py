"""A flow policy, learned from demonstrations and then tuned by the rewards of what it does.

    python -m flowjax.main --config=configs/reinflow.py:task=lqr --workdir=runs/lqr
    python -m flowjax.main --config=configs/reinflow.py:run=runs/lqr --workdir=runs/lqr_tuned
    python -m flowjax.main --config=configs/reinflow.py:task=pendulum --workdir=runs/pendulum        # extra `control`
    python -m flowjax.main --config=configs/reinflow.py:run=runs/pendulum --workdir=runs/pendulum_tuned

The demonstrations are poor on purpose: of `lqr` a third of the best gain, with noise; of `pendulum` a swing that is never
caught. Where the best policy is known, so is what it expects (`return_best`), which no policy of any kind can do better than.

The watchdog measures how far the flow's actions have gone from those it began with, under what demonstrations have seen, and
how much of their spread is left; report.html draws the return against it. It has no limits here unless told: the best policy
may be far away and has no spread. `--config.method.target_divergence` lets a policy rest that has moved so far in a period,
and ends nothing.
"""

from flowjax.choices import choose
from flowjax.config import ConfigDict, defaults, parse_argument, schedule
from flowjax.methods.finished import adopt, reference_of_run

DATA = {
    "lqr": dict(
        name="demonstrations",
        environment=dict(name="lqr", horizon=50),
        expert=dict(name="linear", share=0.3, noise=0.3),
    ),
    "pendulum": dict(
        name="demonstrations",
        environment=dict(name="gym", id="Pendulum-v1", horizon=200),
        expert=dict(name="swing_up", pump=0.3, catch=0.0, noise=0.2),
        episodes=100,
        test_episodes=20,
    ),
}
# environment -> updates, batch, learning rate, episodes evaluated, and options of the method.
TUNING = {
    "lqr": (8_000, 1_280, 5e-4, 2_000, dict(
        episodes=128, epochs=4, clip=0.03, discount=0.99, decay=0.9, reward_scale=0.1,
        noise=dict(low=0.1, high=0.5, left=0.3),
        critic_optimizer=dict(name="adam", learning_rate=1e-3, decay="cosine"),
    )),
    "gym": (12_000, 800, 3e-4, 100, dict(episodes=32, epochs=5, discount=0.97, reward_scale=0.02)),
}  # fmt: skip


def get_config(argument: str = "") -> ConfigDict:
    """Options: task = lqr or pendulum, to learn from demonstrations; or run = such a run, to be tuned; steps; tiny."""
    options = parse_argument(argument, task="lqr", run="", steps=4, tiny=False)
    return _tuning(options) if options.run else _imitation(options)


def _imitation(options: ConfigDict) -> ConfigDict:
    config = defaults()
    config.name = options.task
    config.data = choose("task", options.task, DATA)
    config.steps, config.batch_size, config.steps_per_dispatch = 10_000, 256, 100
    config.network = dict(name="mlp", width=128, depth=2, octaves=3)
    config.method = dict(name="flow_matching", label_dropout=0.0)
    config.optimizer = dict(name="adam", learning_rate=1e-3, decay="cosine")
    config.samplers = dict(default=dict(name="euler", steps=options.steps, grid=dict(name="uniform"), role="ema"))
    config.evaluators = dict(sliced_w2=dict(name="sliced_w2"))
    config.evaluation = dict(count=1_000, batch_size=1_000)
    config.when.log = schedule(every_steps=1_000)
    config.when.sample = schedule()
    if options.tiny:
        config.name += "_tiny"
        config.steps, config.steps_per_dispatch = 40, 20
        config.data.episodes = config.data.test_episodes = 4
        config.data.environment.horizon = 10
        config.batch_size = 32
        config.evaluation = dict(count=20, batch_size=20)
        config.when.log = schedule(every_steps=20)
    return config


def _tuning(options: ConfigDict) -> ConfigDict:
    config = defaults()
    theirs = adopt(config, options.run, "The policy that is tuned")
    world = theirs.data.environment
    updates, batch, rate, count, method = choose("environment", world.name, TUNING)
    config.name = f"{theirs.name}_tuned"
    config.steps, config.batch_size, config.steps_per_dispatch = updates, batch, 20
    config.method = dict(name="reinflow", environment=world.to_dict(), steps=options.steps, **method)
    config.restore.student = reference_of_run(options.run, "The policy that is tuned")
    config.optimizer = dict(name="adam", learning_rate=rate, decay="cosine", final_fraction=0.1, clip_norm=0.5)
    config.ema = dict()
    plain = dict(name="episodes")
    config.samplers = dict(default=plain, zero=dict(plain, start="zero"), noisy=dict(plain, noisy=True))
    config.watchdog = dict(name="reference", role="student")
    config.samplers.actions = dict(name="euler", steps=options.steps, grid=dict(name="uniform"), role="student")
    config.evaluators = dict(episode_return=dict(name="episode_return"))
    config.evaluation = dict(count=count, batch_size=count)
    config.when.log = schedule(every_steps=config.steps // 100)
    config.when.sample = schedule()
    config.when.evaluate = schedule(at_percent=(1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100))
    config.when.checkpoint = schedule(at_percent=(50, 100))
    if options.tiny:
        config.name += "_tiny"
        config.steps, config.batch_size, config.steps_per_dispatch = 8, 40, 4
        config.method.update(episodes=8, epochs=2)
        config.evaluation = dict(count=8, batch_size=8)
        config.when.log = config.when.checkpoint = schedule(every_steps=4)
        config.when.evaluate = schedule(at_percent=(100,))
    return config
