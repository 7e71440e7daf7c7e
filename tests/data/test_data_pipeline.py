"""The order of the data: a function of (seed, step), whatever stops, starts, threads and processes there are."""

import grain
import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.data import ArraySource, RecordSource, Source, evaluation_batches, make_iterator
from flowjax.data.points import mixture
from flowjax.paths.couplings import COUPLINGS


def numbered(count, **options):
    """An in-memory source whose example i is the number i."""
    values = np.arange(count, dtype=np.float32).reshape(-1, 1)
    return ArraySource({"data": values}, {"data": values[:5] + 1000}, DataSpec((1,)), **options)


class Files:
    """Records to be read one by one: a byte string for each."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return str(int(index)).encode()


def numbered_records(count, augment=None):
    decode = lambda record: {"data": np.float32([float(record.decode())])}
    return RecordSource(Files(count), decode, DataSpec((1,)), augment=augment, test=Files(3))


def jitter(example, generator):
    return {"data": example["data"] + np.float32(generator.uniform(0, 0.5))}


SOURCES = {
    "points": lambda: mixture(labels=True),
    "arrays": lambda: numbered(23),
    "records": lambda: numbered_records(23),
    "augmented records": lambda: numbered_records(23, jitter),
}
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())


def couple(batch, generator):
    return {**batch, "noise": generator.standard_normal(batch["data"].shape, dtype=np.float32)}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype


@every_source
def test_a_source_has_the_interface_and_the_contract_names(make):
    assert isinstance(make(), Source)
    batch = next(make_iterator(make(), 6, coupling=couple))
    assert {"data", "mask", "row", "noise"} <= batch.keys()
    np.testing.assert_array_equal(batch["row"], np.arange(6))
    np.testing.assert_array_equal(batch["mask"], np.ones(6))


@every_source
@pytest.mark.parametrize("threads", [0, 2])
def test_resumed_batches_equal_uninterrupted_ones(make, threads):
    whole = make_iterator(make(), 6, seed=3, coupling=couple)
    batches = [next(whole) for _ in range(12)]
    first = make_iterator(make(), 6, seed=3, coupling=couple, threads=threads)
    for batch in batches[:5]:
        assert_same(next(first), batch)
    state = first.get_state()
    first.close()
    assert state == {"next_index": 5}
    resumed = make_iterator(make(), 6, seed=3, coupling=couple, threads=threads)
    resumed.set_state(state)
    started = make_iterator(make(), 6, seed=3, coupling=couple, threads=threads, start_step=5)
    for batch in batches[5:]:
        assert_same(next(resumed), batch)
        assert_same(next(started), batch)
    assert resumed.next_step == 12
    resumed.close(), started.close()


@every_source
def test_threads_do_not_change_the_order(make):
    plain, threaded = make_iterator(make(), 4), make_iterator(make(), 4, threads=4, prefetch=16)
    for _ in range(40):
        assert_same(next(plain), next(threaded))
    threaded.close()


@every_source
def test_stacked_batches_equal_single_ones(make):
    single, stacked = make_iterator(make(), 4, coupling=couple), make_iterator(make(), 4, coupling=couple)
    for count in (1, 7, 2):
        stack = stacked.stack_batches(count)
        for i in range(count):
            assert_same({name: value[i] for name, value in stack.items()}, next(single))
    with pytest.raises(ValueError, match="at least one"):
        stacked.stack_batches(0)


@every_source
def test_the_slices_of_processes_concatenate_to_the_global_batch(make):
    whole = make_iterator(make(), 6, seed=1)
    parts = [make_iterator(make(), 6, seed=1, process_index=i, process_count=3) for i in range(3)]
    for _ in range(9):
        batch, pieces = next(whole), [next(part) for part in parts]
        assert all(len(piece["data"]) == 2 for piece in pieces)
        assert_same({name: np.concatenate([piece[name] for piece in pieces]) for name in batch}, batch)


def test_processes_couple_with_different_noise():
    parts = [make_iterator(mixture(), 4, coupling=couple, process_index=i, process_count=2) for i in range(2)]
    one, other = (next(part)["noise"] for part in parts)
    assert (one != other).all()


@pytest.mark.parametrize("make", [numbered, numbered_records])
def test_each_epoch_visits_every_example_once_and_in_another_order(make):
    size, batch_size, epochs = 23, 6, 6
    iterator = make_iterator(make(size), batch_size)
    stream = np.concatenate([next(iterator)["data"][:, 0] for _ in range(size)])  # 23 batches of 6: six epochs of 23
    orders = stream.reshape(epochs, size)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
    assert len({tuple(order) for order in orders}) == epochs


@every_source
def test_seeds_and_steps_differ(make):
    one, other = make_iterator(make(), 8, seed=0), make_iterator(make(), 8, seed=1)
    first, second = next(one), next(one)
    assert (first["data"] != second["data"]).any()
    assert (first["data"] != next(other)["data"]).any()


def test_a_row_of_points_does_not_depend_on_the_batch_size():
    small, large = make_iterator(mixture(), 4, start_step=9), make_iterator(mixture(), 64, start_step=9)
    np.testing.assert_array_equal(next(small)["data"], next(large)["data"][:4])


@every_source
def test_steps_far_away_are_reached_at_once(make):
    far = 3_000_000
    walked = make_iterator(make(), 4, start_step=far - 1)
    next(walked)
    assert_same(next(make_iterator(make(), 4, start_step=far)), next(walked))


def test_evaluation_passes_visit_everything_once_and_pad_the_last_batch():
    arrays = {"data": np.arange(10, dtype=np.float32)[:, None], "label": np.arange(10, dtype=np.int32)}
    batches = list(evaluation_batches(arrays, 4))
    assert [len(batch["data"]) for batch in batches] == [4, 4, 4]
    real = np.concatenate([batch["data"][batch["mask"] == 1, 0] for batch in batches])
    np.testing.assert_array_equal(real, np.arange(10))
    np.testing.assert_array_equal(batches[-1]["mask"], [1, 1, 0, 0])
    np.testing.assert_array_equal(np.concatenate([batch["row"] for batch in batches]), np.arange(12))


def test_evaluation_slices_concatenate_to_the_global_batch():
    arrays = {"data": np.arange(9, dtype=np.float32)[:, None]}
    whole = list(evaluation_batches(arrays, 4))
    parts = [list(evaluation_batches(arrays, 4, index, 2)) for index in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 3
    for batch, one, other in zip(whole, *parts):
        assert_same({name: np.concatenate([one[name], other[name]]) for name in batch}, batch)


def test_reference_of_finite_sources():
    for source in (numbered(23), numbered_records(23)):
        train, both = source.reference("train")["data"][:, 0], source.reference("all")["data"][:, 0]
        np.testing.assert_array_equal(train, np.arange(23))
        assert len(both) == 23 + len(source.reference("test")["data"])
        some = source.reference("train", count=9, seed=1)["data"][:, 0]
        assert len(set(some)) == 9 and set(some) <= set(range(23))
        assert (some != source.reference("train", count=9, seed=2)["data"][:, 0]).any()
        with pytest.raises(ValueError, match="24 real examples"):
            source.reference("train", count=24)
        with pytest.raises(ValueError, match="Unknown split 'validation'"):
            source.reference("validation")


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="batch_size=24 is larger than the data set .23 examples"):
        make_iterator(numbered(23), 24)
    with pytest.raises(ValueError, match="batch_size=24 is larger"):
        make_iterator(numbered_records(23), 24)
    with pytest.raises(ValueError, match="batch_size=10 does not divide .* 4 processes"):
        make_iterator(mixture(), 10, process_count=4)
    with pytest.raises(ValueError, match="process_index=4"):
        make_iterator(mixture(), 8, process_index=4, process_count=4)
    with pytest.raises(ValueError, match="one length"):
        evaluation_batches({"data": np.zeros((3, 1), np.float32), "label": np.zeros(2, np.int32)}, 2)
    with pytest.raises(ValueError, match="lengths"):
        ArraySource({"data": np.zeros((3, 1)), "label": np.zeros(2)}, {"data": np.zeros((1, 1))}, DataSpec((1,)))


def test_a_bad_coupling_is_noticed_before_training():
    with pytest.raises(ValueError, match="'noise'"):
        make_iterator(mixture(), 4, coupling=lambda batch, generator: {**batch, "noise": np.zeros((4, 3), np.float32)})


def test_the_pipeline_is_a_grain_dataset():
    assert isinstance(numbered(23).dataset(0, 4, 0, 4), grain.MapDataset)
    assert isinstance(numbered_records(23).dataset(0, 4, 0, 4), grain.MapDataset)


@pytest.mark.parametrize("name", ["independent", "optimal_transport", "sinkhorn"])
def test_the_couplings_of_the_library_resume_exactly_and_keep_the_data(name):
    coupling = COUPLINGS[name]()
    plain = make_iterator(numbered(23), 6)
    iterator = make_iterator(numbered(23), 6, coupling=coupling)
    batches = [next(iterator) for _ in range(4)]
    assert_same(next(make_iterator(numbered(23), 6, coupling=coupling, start_step=3)), batches[3])
    for batch in batches:
        np.testing.assert_array_equal(batch["data"], next(plain)["data"])
        assert ("noise" in batch) == (name != "independent")
    if name == "optimal_transport":  # on a line the optimal pairing keeps the order
        order = np.argsort(batches[0]["data"][:, 0])
        assert (np.diff(batches[0]["noise"][order, 0]) > 0).all()
