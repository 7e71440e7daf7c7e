"""Mixtures: shares as the schedule says, every source gone through in order, and nothing that depends on who asks."""

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.data import SOURCES, ArraySource, RecordSource, Source, check_batch, make_iterator, mixed
from flowjax.data.mixtures import child_seed
from flowjax.data.turns import BLOCK, Turns, make_schedule


def numbered(count, mark, shape=(1,), **spec):
    """Examples mark + 0, mark + 1, ...: the mark tells sources apart."""
    values = (mark + np.arange(count, dtype=np.float32)).reshape(-1, *(1,) * len(shape))
    values = np.broadcast_to(values, (count, *shape)).copy()
    return ArraySource({"data": values}, {"data": values[:7] + 500}, DataSpec(shape, **spec))


def records(count, mark, augment=None):
    decode = lambda record: {"data": np.float32([record])}
    return RecordSource(list(range(mark, mark + count)), decode, DataSpec((1,)), augment, test=[mark + 500])


def even(count, total=None, **options):
    return make_schedule(count, options.get("weights"), options.get("schedule", ()), total)


CURRICULUM = ((0.0, (1, 0)), (0.3, (0.5, 0.5)), (1.0, (0, 1)))
MIXTURES = {
    "rows of arrays": lambda: mixed([numbered(23, 0), numbered(40, 1000)], even(2, weights=(3, 1))),
    "rows of records": lambda: mixed([records(23, 0), numbered(40, 1000)], even(2, 300, schedule=CURRICULUM)),
    "rows of points": lambda: SOURCES["mix"]((dict(name="mixture"), dict(name="moons"))),
    "steps of two shapes": lambda: mixed([numbered(23, 0, (2,)), numbered(40, 1000, (3,))], even(2, weights=(2, 1))),
    "held steps": lambda: mixed([numbered(23, 0, (2,)), numbered(40, 1000, (3,))], even(2), hold=3),
}
every_mixture = pytest.mark.parametrize("make", MIXTURES.values(), ids=MIXTURES.keys())


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype


def test_the_schedule_is_linear_between_its_knots():
    schedule = make_schedule(2, None, CURRICULUM, 1000)
    expected = [[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1], [0, 1]]
    np.testing.assert_allclose(schedule.at(np.array([0, 150, 300, 650, 1000, 5000])), expected, atol=1e-12)
    steps = make_schedule(2, None, ((100, (1, 3)), (200, (1, 0))), None)
    np.testing.assert_allclose(steps.at(np.array([0, 100, 150])), [[0.25, 0.75], [0.25, 0.75], [0.625, 0.375]])
    np.testing.assert_allclose(make_schedule(3, None, (), None).at(np.array([7])), [[1 / 3] * 3])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((2, (1,), (), None), "2 sources, but 1 weights"),
        ((2, (1, -1), (), None), "at least 0"),
        ((2, (0, 0), (), None), "one of them above"),
        ((2, (1, 1), CURRICULUM, 10), "one of the two"),
        ((2, None, CURRICULUM, None), "length is not known"),
        ((2, None, ((0.5, (1, 0)), (0.2, (0, 1))), 10), "must ascend"),
        ((2, None, (0.5, 0.5), 10), "expected pairs"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(*arguments)


def test_each_batch_has_its_shares_to_within_a_row_and_a_run_has_them_closely():
    schedule, rows = make_schedule(3, (0.55, 0.15, 0.3), (), None), 10
    counts = np.diff(Turns(schedule, 0, rows).edges(0, 4 * BLOCK), axis=1)
    assert (counts.sum(1) == rows).all()
    assert (np.abs(counts - rows * schedule.weights) < 1).all()
    # Exact on average: stratified uniforms leave an error of a few rows in 40,960.
    np.testing.assert_allclose(counts.sum(0), 4 * BLOCK * rows * schedule.weights[0], atol=12)
    assert len(np.unique(counts[:, 1])) == 2  # 1.5 rows are sometimes 1 and sometimes 2


def test_whole_steps_follow_a_changing_schedule():
    schedule = make_schedule(2, None, ((0, (1, 0)), (4000, (0, 1))), None)
    given = np.diff(Turns(schedule, 5, 1).edges(0, 4000), axis=1)
    share = given[:, 1].reshape(8, 500).mean(1)
    np.testing.assert_allclose(share, (np.arange(8) + 0.5) / 8, atol=0.06)
    # an unbiased draw that shuffles: neighbours of a half-and-half stretch differ about half the time
    assert 0.35 < np.mean(given[1500:2500, 1] != given[1501:2501, 1]) < 0.65
    assert (given != np.diff(Turns(schedule, 6, 1).edges(0, 4000), axis=1)).any()


@pytest.mark.parametrize("rows, hold", [(10, 1), (1, 1), (1, 4)])
def test_the_count_before_a_step_is_the_sum_over_the_steps_before(rows, hold):
    schedule = make_schedule(3, None, ((0, (1, 1, 2)), (3000, (0, 3, 1))), None)
    walked, before = Turns(schedule, 3, rows, hold), np.zeros(3, int)
    for step in range(2 * BLOCK + 50):
        edges, given = walked.at(step)
        np.testing.assert_array_equal(given, before)
        before = before + np.diff(edges)
    np.testing.assert_array_equal(Turns(schedule, 3, rows, hold).at(2 * BLOCK + 50)[1], before)  # reached at once


@every_mixture
def test_a_mixture_is_a_source_and_resumes_exactly(make):
    source = make()
    assert isinstance(source, Source)
    whole = make_iterator(source, 6, seed=3)
    batches = [next(whole) for _ in range(30)]
    resumed = make_iterator(make(), 6, seed=3, threads=2)
    resumed.set_state({"next_index": 17})
    for batch in batches[17:]:
        check_batch(batch, source.spec)
        assert_same(next(resumed), batch)
    resumed.close()
    assert any(
        (first["data"] != second["data"]).any()
        for first, second in zip(batches, batches[1:])
        if first["data"].shape == second["data"].shape
    )


@every_mixture
def test_the_slices_of_processes_concatenate_to_the_global_batch(make):
    whole = make_iterator(make(), 6, seed=1)
    parts = [make_iterator(make(), 6, seed=1, process_index=i, process_count=3) for i in range(3)]
    for _ in range(12):
        batch, pieces = next(whole), [next(part) for part in parts]
        assert_same({name: np.concatenate([piece[name] for piece in pieces]) for name in batch}, batch)


@every_mixture
@pytest.mark.parametrize("length", [4, 5])
def test_stacks_stop_where_the_shape_changes_and_keep_the_order(make, length):
    single, stacked = make_iterator(make(), 4), make_iterator(make(), 4)
    seen = 0
    while seen < 40:
        stack = stacked.stack_batches(length)
        count = len(stack["mask"])
        assert 1 <= count <= length
        for index in range(count):
            assert_same({name: value[index] for name, value in stack.items()}, next(single))
        seen += count
        assert stacked.next_step == seen == stacked.get_state()["next_index"]
        resumed = make_iterator(make(), 4)
        resumed.set_state(stacked.get_state())
        if count < length:
            shape = next(resumed)["data"].shape
            assert shape != stack["data"].shape[1:]


def test_both_kinds_go_through_every_example_once_an_epoch():
    for first, second in ((numbered(23, 0), numbered(40, 1000)), (numbered(23, 0, (2,)), numbered(40, 1000, (3,)))):
        iterator = make_iterator(mixed([first, second], even(2, weights=(3, 1))), 8)
        drawn = np.concatenate([next(iterator)["data"][:, 0] for _ in range(80)])
        for low, size in ((0, 23), (1000, 40)):
            mine = drawn[(drawn >= low) & (drawn < low + 500)] - low
            assert len(mine) >= 2 * size
            for epoch in range(len(mine) // size):
                np.testing.assert_array_equal(np.sort(mine[epoch * size : (epoch + 1) * size]), np.arange(size))


def test_an_augmentation_depends_on_the_example_position_alone():
    jitter = lambda example, generator: {"data": example["data"] + np.float32(generator.uniform(0, 0.5))}
    source = mixed([records(23, 0, jitter), numbered(40, 1000)], even(2))
    alone = make_iterator(records(23, 0, jitter), 4, seed=child_seed(9, 0))
    mine = make_iterator(source, 8, seed=9)
    drawn = np.concatenate([next(mine)["data"] for _ in range(10)])
    expected = np.concatenate([next(alone)["data"] for _ in range(10)])
    np.testing.assert_array_equal(drawn[drawn < 500], expected[:, 0])


def test_two_sources_of_one_kind_draw_different_examples():
    batch = next(make_iterator(SOURCES["mix"]((dict(name="mixture"), dict(name="mixture"))), 64))
    assert len(np.unique(batch["data"][:, 0])) == 64


def test_the_reference_has_the_final_shares_and_the_base_shape():
    source = mixed([numbered(23, 0), numbered(40, 1000)], even(2, 10, schedule=((0.0, (1, 0)), (1.0, (1, 3)))))
    real = source.reference("train", 40)["data"][:, 0]
    assert (real < 500).sum() == 10 and len(np.unique(real)) == 40
    assert len(source.reference("train")["data"]) == int(40 / 0.75)
    shapes = mixed([numbered(23, 0, (2,)), numbered(40, 1000, (3,))], even(2, weights=(1, 2)))
    assert shapes.spec.shape == (3,) and shapes.spec.shapes == ((2,), (3,))
    assert shapes.reference("test")["data"].shape == (7, 3)
    assert mixed([numbered(23, 0, (2,)), numbered(40, 1000, (3,))], even(2), base=0).spec.shape == (2,)


def test_from_a_config_with_shares_of_its_run():
    spec = dict(name="mix", sources=(dict(name="mixture"), dict(name="moons", noise=0.2)), schedule=CURRICULUM)
    source = build("data source", spec, SOURCES, seed=0, total_steps=100)
    np.testing.assert_allclose(source.schedule.at(np.array([30])), [[0.5, 0.5]])
    with pytest.raises(ValueError, match="Did you mean 'noise'"):
        build(
            "data source", {**spec, "sources": (dict(name="moons", nois=1), dict(name="moons"))}, SOURCES, total_steps=9
        )


class Tokenizer:
    def __init__(self, name):
        self.name = name

    def fingerprint(self):
        return self.name


def captioned(name, shape=(1,)):
    tokens = np.ones((9, 4), np.int32)
    arrays = {"data": np.zeros((9, *shape), np.float32), "tokens": tokens}
    source = ArraySource(arrays, arrays, DataSpec(shape, text_length=4, vocabulary=7))
    object.__setattr__(source, "tokenizer", Tokenizer(name))
    return source


def test_sources_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="differ in num_classes .None and 3."):
        mixed([numbered(9, 0), numbered(9, 0, num_classes=3)], even(2))
    with pytest.raises(ValueError, match="differ in vocabulary"):
        mixed([numbered(9, 0, vocabulary=5), numbered(9, 0, vocabulary=6)], even(2))
    with pytest.raises(ValueError, match="different tokenizers"):
        mixed([captioned("a"), captioned("b")], even(2))
    assert mixed([captioned("a"), captioned("a")], even(2)).tokenizer.fingerprint() == "a"
    labelled = ArraySource(
        {"data": np.zeros((9, 1), np.float32), "size": np.zeros(9, np.float32)},
        {"data": np.zeros((9, 1), np.float32), "size": np.zeros(9, np.float32)},
        DataSpec((1,)),
    )
    with pytest.raises(ValueError, match="different conditions"):
        mixed([numbered(9, 0), labelled], even(2))
    with pytest.raises(ValueError, match="at least two"):
        mixed([numbered(9, 0)], even(1))
    with pytest.raises(ValueError, match="cannot be a source of a mixture"):
        mixed([MIXTURES["rows of arrays"](), numbered(9, 0)], even(2))
    with pytest.raises(ValueError, match="some of them twice"):
        make_iterator(mixed([numbered(9, 0), numbered(30, 0)], even(2)), 24)
    with pytest.raises(ValueError, match="hold=2 is for sources of several shapes"):
        mixed([numbered(9, 0), numbered(9, 0)], even(2), hold=2)
    with pytest.raises(ValueError, match="not among its shapes"):
        DataSpec((1,), shapes=((2,), (3,)))
