"""Buckets: nearest proportions, shares of their pictures, one shape a batch, and real training that resumes exactly."""

import json

import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.data import SOURCES, RecordSource, check_batch, make_iterator
from flowjax.data.buckets import bucket_shapes, bucketed, nearest_bucket

SHAPES = ((8, 4, 3), (8, 8, 3), (4, 8, 3))
SIZES = np.array([(16, 8)] * 12 + [(16, 16)] * 24 + [(9, 20)] * 12)


class Pictures:
    """Record i is a picture of its own size whose every pixel is i."""

    def __init__(self, sizes, start=0):
        self.sizes, self.start = sizes, start

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return int(index)

    def decode(self, record):
        return {"data": np.full((*self.sizes[record], 3), self.start + record, np.uint8)}


def source(**options):
    records, test = Pictures(SIZES), Pictures(SIZES[::5])
    return bucketed(
        records, SIZES, records.decode, DataSpec((8, 8, 3)), SHAPES, test=test, test_sizes=SIZES[::5], **options
    )


def identity_of(batch):
    return np.rint((batch["data"].mean((1, 2, 3)) + 1) * 127.5).astype(int)


def test_bucket_shapes_have_about_the_pixels_of_the_square():
    shapes = bucket_shapes(64, 16)
    assert (64, 64, 3) in shapes and (48, 80, 3) in shapes and (80, 48, 3) in shapes
    for height, width, _ in shapes:
        assert height % 16 == width % 16 == 0 and max(height, width) <= 2 * min(height, width)
        assert 0.75 * 64 * 64 <= height * width <= 64 * 64
    assert len({height for height, _, _ in shapes}) == len(shapes)
    assert bucket_shapes(32, 8, 1, 4.0) == ((64, 16, 1), (40, 24, 1), (32, 32, 1), (24, 40, 1), (16, 64, 1))
    with pytest.raises(ValueError, match="side=30 is not a multiple of 8. Use 32"):
        bucket_shapes(30, 8)


def test_pictures_go_to_the_nearest_proportions_and_the_largest_size_they_fill():
    shapes = [(16, 16, 3), (32, 32, 3), (16, 32, 3), (32, 16, 3)]
    sizes = np.array([(40, 40), (31, 31), (10, 10), (100, 130), (100, 150), (150, 100), (20, 90)])
    assert nearest_bucket(sizes, shapes).tolist() == [1, 0, 0, 1, 2, 3, 2]
    with pytest.raises(ValueError, match="at least 1 pixel"):
        nearest_bucket(np.array([(3, 0)]), shapes)


def test_batches_have_one_shape_and_buckets_come_as_often_as_they_have_pictures():
    iterator, spec = make_iterator(source(), 4, seed=1), source().spec
    assert spec.shapes == SHAPES and spec.shape == (8, 8, 3)
    seen = {shape: [] for shape in SHAPES}
    for _ in range(120):
        batch = next(iterator)
        check_batch(batch, spec)
        seen[batch["data"].shape[1:]].append(identity_of(batch))
    for shape, first, count, share in ((SHAPES[0], 0, 12, 30), (SHAPES[1], 12, 24, 60), (SHAPES[2], 36, 12, 30)):
        assert abs(len(seen[shape]) - share) < 20
        drawn = np.concatenate(seen[shape])[: 3 * count].reshape(3, count)
        np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(first, first + count), (3, 1)))


def test_the_bucket_of_a_step_is_the_same_for_every_process_and_seed_decides_it():
    iterators = [make_iterator(source(), 4, seed=1, process_index=index, process_count=2) for index in range(2)]
    shapes = [[next(iterator)["data"].shape for _ in range(40)] for iterator in iterators]
    assert shapes[0] == shapes[1]
    made = source()
    order = [SHAPES[made.source_of_step(1, step)] for step in range(40)]
    assert [shape[1:] for shape in shapes[0]] == order
    assert order != [SHAPES[made.source_of_step(2, step)] for step in range(40)]


def test_held_buckets_fill_whole_dispatches():
    iterator = make_iterator(source(hold=4), 4)
    assert [len(iterator.stack_batches(4)["mask"]) for _ in range(12)] == [4] * 12


def test_small_buckets_are_dissolved_and_one_bucket_is_a_plain_source():
    made = source(least=13)
    assert isinstance(made, RecordSource) and made.spec.shape == (8, 8, 3) and made.size == 48
    assert source(least=12).spec.shapes == SHAPES
    batch = next(make_iterator(made, 48))
    np.testing.assert_array_equal(np.sort(identity_of(batch)), np.arange(48))
    real = source().reference("test")["data"]
    assert real.shape == (5, 8, 8, 3)  # the base bucket's own: records 15, 20, ... 35
    assert source().fingerprint() == source().fingerprint() != source(flip=True, crop="centre", least=13).fingerprint()


def test_impossible_buckets_are_refused():
    records = Pictures(SIZES)
    make = lambda shape, sizes=SIZES: bucketed(records, sizes, records.decode, DataSpec(shape), SHAPES)
    with pytest.raises(ValueError, match="base shape .16, 16, 3. is not one of the buckets"):
        make((16, 16, 3))
    with pytest.raises(ValueError, match="47 sizes for 48 records"):
        make((8, 8, 3), SIZES[:-1])
    with pytest.raises(ValueError, match="nothing would train it"):
        upright = SIZES[:12]
        bucketed(Pictures(upright), upright, records.decode, DataSpec((8, 8, 3)), SHAPES)
    with pytest.raises(ValueError, match="batch_size=16 is larger than the data set .12 examples"):
        make_iterator(source(), 16)


@pytest.fixture
def two_buckets(monkeypatch):
    """A source name of the test's own: pictures of two shapes, smooth enough to learn something."""

    def build(seed: int = 0):
        records = Pictures(SIZES[:36])
        return bucketed(records, SIZES[:36], records.decode, DataSpec((8, 8, 3), std=0.9), SHAPES[:2])

    monkeypatch.setitem(SOURCES, "two_buckets", build)


def train(workdir, steps, length=1, log=1):
    import jax

    from flowjax.config import defaults, schedule
    from flowjax.training.run import Run
    from flowjax.training.trainer import Trainer

    config = defaults()
    config.update(dict(steps=steps, batch_size=8, steps_per_dispatch=length, seed=3))
    config.data = dict(name="two_buckets")
    config.network = dict(name="dit", patch=4, width=16, depth=1, heads=2)
    config.optimizer = dict(name="adam", learning_rate=1e-3, decay="constant")
    config.samplers.default = dict(
        name="euler", steps=2, grid=dict(name="uniform"), guidance=dict(name="none"), role="ema"
    )
    never = schedule()
    config.when = dict(log=schedule(every_steps=log), sample=never, evaluate=never, checkpoint=schedule(every_steps=7))
    config.writers.tensorboard = False
    workdir.mkdir(exist_ok=True)
    trainer = Trainer(Run(config, workdir))
    seen = []
    take = trainer.feed.take

    def watched(state, step, count):
        batches = take(state, step, count)
        seen.extend([batches["data"].shape[2:]] * len(batches["mask"]))
        return batches

    trainer.feed.take = watched
    state = trainer.train()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return jax.tree.map(np.asarray, state.params), seen, [line["loss"] for line in lines if "loss" in line]


def test_training_over_two_buckets_resumes_bit_for_bit_and_keeps_its_order_in_any_dispatch(
    two_buckets, tmp_path, caplog
):
    import jax

    def compiled():
        """Of programs of updates, by what JAX tells."""
        told = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return sum(text.startswith("Finished XLA compilation of jit(dispatch)") for text in told)

    with jax.log_compiles():
        whole, order, losses = train(tmp_path / "whole", 14)
    # 36 pictures in batches of 8 are three epochs: shapes come again, and bring no program more.
    assert min(map(order.count, order)) > 1 and len(set(order)) == compiled() == 2
    made = SOURCES["two_buckets"]()
    assert order == [SHAPES[made.source_of_step(3, step)][:2] + (3,) for step in range(14)]
    assert np.isfinite(losses).all() and len(losses) == 14
    train(tmp_path / "cut", 7)
    resumed, rest, _ = train(tmp_path / "cut", 14)
    assert rest == order[7:]
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    with jax.log_compiles():
        stacked, in_stacks, _ = train(tmp_path / "stacked", 14, length=4, log=100)
    assert in_stacks == order and compiled() == 2
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), stacked, whole)
