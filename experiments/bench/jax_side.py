"""Our side of the benchmark: programs from configs, run as the trainer and `--mode=sample` run them, and the cases."""

import collections
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.arrays import example_keys
from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.data.pipeline import make_iterator
from flowjax.data.sources import ArraySource
from flowjax.methods.parts import make_setting
from flowjax.models.embeddings import position_features
from flowjax.training.feed import make_feed
from flowjax.training.run import Run
from flowjax.training.state import parameter_count
from flowjax.training.trainer import IN_FLIGHT

CLASSES = 10


def cases(tiny: bool) -> dict[str, dict]:
    """What is measured: `network` for both sides, `torch` options of its module there, `repeat` calls in one turn.

    A turn of training is `repeat` updates, of sampling `repeat` draws of `batch_size` samples.
    """
    mlp = dict(name="mlp", width=256, depth=3)
    dit = dict(name="dit", width=128, depth=6, heads=4, patch=1)
    unet = dict(name="unet", channels=32, multipliers=(1, 2), blocks=2, attention=(8,), head_channels=32)
    wide = dict(name="unet", channels=32, multipliers=(1, 2, 2), blocks=1, attention=(8,), head_channels=32)
    if tiny:
        mlp["width"], dit["width"], dit["depth"], dit["heads"] = 32, 32, 1, 2
        unet["blocks"], wide["channels"] = 1, 8
    listed = {
        "mlp_train": dict(kind="train", network=mlp, shape=(2,), batch_size=256, dispatch=100, repeat=400),
        "dit_train": dict(kind="train", network=dit, shape=(8, 8, 1), batch_size=64, dispatch=4, repeat=8),
        "dit_single_train": dict(kind="train", network=dit, shape=(8, 8, 1), batch_size=64, dispatch=1, repeat=8),
        "unet_8_train": dict(kind="train", network=unet, shape=(8, 8, 1), batch_size=64, dispatch=4, repeat=8),
        "unet_32_train": dict(kind="train", network=wide, shape=(32, 32, 3), batch_size=32, dispatch=4, repeat=4),
        "mlp_sample": dict(kind="sample", network=mlp, shape=(2,), batch_size=1000, steps=20, repeat=2),
        "dit_sample": dict(kind="sample", network=dit, shape=(8, 8, 1), batch_size=16, steps=20, repeat=1),
    }
    for case in listed.values():
        # PyTorch takes minutes to compile a U-Net.
        case["compile"] = case["network"]["name"] != "unet"
        if tiny:
            case |= dict(batch_size=8, repeat=2) | (dict(dispatch=2) if "dispatch" in case else dict(steps=2))
    return listed


def config_of(case: dict):
    """The config of a case: Adam with a cosine, clipping and one average."""
    config = defaults()
    config.name = "bench"
    config.steps = 100_000
    config.batch_size = case["batch_size"]
    config.steps_per_dispatch = case.get("dispatch", 1)
    config.data = dict(name="mixture" if len(case["shape"]) == 1 else "digits")
    config.network = dict(case["network"])
    config.optimizer = dict(name="adam", learning_rate=2e-3, decay="cosine", clip_norm=1.0)
    config.ema = dict(ema=dict(name="warmup", decay=0.999))
    config.samplers = dict(default=dict(name="heun", steps=case.get("steps", 20), role="student"))
    return config


def torch_options(case: dict) -> dict:
    """The arguments of the PyTorch module of the same network."""
    options = dict(case["network"])
    name = options.pop("name")
    if name == "mlp":
        return dict(size=case["shape"][0], width=options["width"], depth=options["depth"])
    side, _, channels = case["shape"]
    if name == "dit":
        return dict(side=side, channels=channels, classes=CLASSES, **options)
    options.pop("head_channels")
    return dict(side=side, image_channels=channels, classes=CLASSES, **options)


class Side:
    """One case, ready to be timed; the state goes on from turn to turn."""

    def __init__(self, case: dict):
        self.case, self.run = case, Run(config_of(case))
        draw = np.random.default_rng(0)
        if len(case["shape"]) == 3:
            # Images of noise: a network's time does not depend on what it sees, and any size can be had.
            images = draw.uniform(-1, 1, (2048, *case["shape"])).astype(np.float32)
            arrays = dict(data=images, label=draw.integers(0, CLASSES, 2048).astype(np.int32))
            self.run.source = ArraySource(arrays, arrays, DataSpec(case["shape"], CLASSES, 0.577))
        self.state = self.run.executor.start()
        self.step, self.in_flight = 0, collections.deque()
        if case["kind"] == "train":
            iterator = make_iterator(self.run.source, case["batch_size"], self.run.config.seed)
            self.feed = make_feed(iterator, self.run.method, self.run.executor)
        else:
            self.program = jax.jit(self.run.method.samplers["default"].draw)

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters (moved off their zeros), an input, our output for it, and the data: what the other side is given."""
        draw, case = np.random.default_rng(1), self.case
        parameters = jax.tree.map(
            lambda leaf: leaf + 0.05 * draw.normal(size=leaf.shape).astype(np.float32), self.state.params["student"]
        )
        x = draw.normal(size=(8, *case["shape"])).astype(np.float32)
        t = draw.uniform(size=8).astype(np.float32)
        label = np.arange(8, dtype=np.int32)
        output = network_output(self.run, parameters, x, t, label)
        flat = jax.tree_util.tree_flatten_with_path(parameters)[0]
        result = {f"p:{jax.tree_util.keystr(k, simple=True, separator='/')}": np.asarray(v) for k, v in flat}
        result |= dict(x=x, t=t, output=np.asarray(output))
        if len(case["shape"]) == 3:
            result |= dict(label=label, data=self.run.source.train["data"], labels=self.run.source.train["label"])
        if case["network"]["name"] == "dit":
            cells = case["shape"][0] // case["network"]["patch"]
            result["positions"] = position_features(cells, cells, case["network"]["width"])
        return result

    @property
    def parameters(self) -> int:
        """The number of the network's parameters."""
        return parameter_count(self.state.params["student"])

    def time(self, count: int) -> dict[str, float]:
        """Wall and processor seconds of `count` updates or draws, with everything a user waits for."""
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        (self._train if self.case["kind"] == "train" else self._sample)(count)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        return {"wall": wall, "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}

    def _train(self, count: int) -> None:
        """The trainer's loop without its events: feed, dispatch, look at the metrics of the dispatch before last."""
        done, executor = 0, self.run.executor
        while done < count:
            size = min(self.case["dispatch"], count - done)
            batches = self.feed.take(self.state, self.step, size)
            self.state, metrics = executor.run(self.state, batches, self.run.method.due(self.step), size)
            self.in_flight.append(metrics)
            self.step, done = self.step + size, done + size
            while len(self.in_flight) > (IN_FLIGHT if done < count else 0):
                self._look()

    def _look(self) -> None:
        metrics = {name: np.asarray(value) for name, value in self.in_flight.popleft().items()}
        if not np.all(metrics["healthy"][-1:]) and self.case["dispatch"] == 1:
            raise RuntimeError("A benchmarked update was not finite.")

    def _sample(self, count: int) -> None:
        size = self.case["batch_size"]
        label = jnp.arange(size) % CLASSES
        cond = {"label": label} if len(self.case["shape"]) == 3 else {}
        for _ in range(count):
            self.step += 1
            keys = example_keys(jax.random.key(self.step), jnp.arange(size))
            samples = self.program(self.state.params, cond, keys)
        np.asarray(samples)


def network_output(run: Run, parameters, x, t, label):
    """The student's prediction."""
    network = make_setting(run.config, run.source.spec, "velocity").network
    return jax.jit(network.apply)(parameters, jnp.asarray(x), jnp.asarray(t), {"label": jnp.asarray(label)})
