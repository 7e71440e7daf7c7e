"""Pictures on a canvas: their sizes, where they lie, what is beside them, and every source that makes them."""

import numpy as np
import pytest
from real_data import noise_png, png, write_folder, write_tar

from flowjax.contract import DataSpec
from flowjax.data import check_batch, make_iterator, mixed
from flowjax.data.cached import with_cache
from flowjax.data.caches import CacheError, build_cache, encoder_parts
from flowjax.data.canvas import Canvas, corner_mask, make_frame
from flowjax.data.folders import folder
from flowjax.data.latents import latents
from flowjax.data.pictures import mirror
from flowjax.data.prepare import __main__ as command
from flowjax.data.prepared import records
from flowjax.data.turns import make_schedule
from flowjax.data.webdataset import webdataset

KINDS = {"wide": (24, 12), "tall": (12, 28), "square": (40, 40), "small": (10, 9)}  # width, height
# On a canvas for side 16 and multiple 4, which is 20 x 20 (16 sqrt 2 = 22.6): height, width. By hand: 12 x 24 is scaled by
# min(16 / sqrt(288), 20 / 24) = 0.83 to 10 x 20; 28 x 12 by 20 / 28 to 20 x 8.6; 40 x 40 by 0.4; 9 x 10 not at all.
PLACED = {"wide": (8, 20), "tall": (20, 8), "square": (16, 16), "small": (8, 8)}
OPTIONS = dict(size=16, mask_multiple=4)


def named_pictures():
    return {f"{kind}{i}.png": noise_png(7 * i, size)[0] for kind, size in KINDS.items() for i in range(4)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("canvas")
    metadata = [{"file_name": name, "text": f"a {name[:-5]} picture"} for name in named_pictures()]
    write_folder(root / "in", named_pictures(), metadata)
    command.run(["folder", "--from", str(root / "in"), "--to", str(root / "out"), "--test-share", "0.3"], say=str)
    return root


def test_sizes_by_hand():
    frame = make_frame((64, 64, 3), "crop", 8)
    assert frame.shape == (88, 88, 3)  # 64 sqrt 2 = 90.5
    for size, placed in {
        (64, 64): (64, 64),
        (640, 640): (64, 64),
        (100, 200): (40, 88),  # the canvas decides: 0.44 of 100 is 44
        (200, 150): (72, 48),  # 0.3695: 73.9 x 55.4
        (30, 30): (24, 24),  # never enlarged
        (1000, 10): (88, 8),  # enlarged no: 0.8 of 10 is one multiple, and the rest is cut off
        (4, 64): (8, 88),  # enlarged to one multiple
        (1, 1): (8, 8),
    }.items():
        assert frame.visible_size(*size) == placed, size
    assert make_frame((64, 64, 3), "crop", 8, (64, 96)).visible_size(300, 100) == (64, 16)
    assert make_frame((64, 64, 3), "crop", 64).shape == (64, 64, 3)


def test_sizes_keep_their_promises():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, np.log(2000), (3000, 2))).astype(int)
    for side, multiple, canvas in ((64, 8, ()), (64, 16, (64, 128)), (48, 2, ()), (20, 20, ())):
        frame = make_frame((side, side, 1), "crop", multiple, canvas)
        for tall, wide in sizes.tolist():
            height, width = frame.visible_size(tall, wide)
            assert height % multiple == width % multiple == 0 < min(height, width)
            assert height * width <= side**2 and height <= frame.shape[0] and width <= frame.shape[1]
            room = min(frame.shape[0] / tall, frame.shape[1] / wide, side / np.sqrt(tall * wide), 1)
            if min(tall, wide) * room >= multiple:  # all others are enlarged, or too long for the canvas
                assert height <= tall and width <= wide
                # Nearly all is seen: rounding costs less than one multiple a side.
                assert abs(np.log(height * wide / width / tall)) <= np.log1p(multiple / min(height, width)) + 1e-9


def test_a_picture_lies_in_the_corner_and_nothing_beside_it():
    frame, rng = Canvas((20, 20, 3), 16, 4), np.random.default_rng(0)
    pixels = rng.integers(1, 256, (8, 12, 3), dtype=np.uint8)
    placed = frame(pixels)
    np.testing.assert_array_equal(placed["data"][:8, :12], pixels)  # it fits: not a pixel is touched
    np.testing.assert_array_equal(placed["extent"], [8, 12])
    assert not placed["data"][8:].any() and not placed["data"][:, 12:].any()
    large = rng.integers(1, 256, (16, 40, 3), dtype=np.uint8)  # scaled by one half: means of 2 x 2
    halved = large.reshape(8, 2, 20, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(frame(large)["data"][:8], halved, atol=1)
    assert make_frame((16, 16, 1), "crop", 4)(pixels)["data"].shape == (20, 20, 1)
    mask = corner_mask(np.int32([[8, 12], [20, 4]]), 20, 20)
    assert mask.sum(axis=(1, 2)).tolist() == [96, 80] and mask[0, 7, 11] and not mask[0, 8, 0] and mask[1, 19, 3]


@pytest.mark.parametrize("memory", [True, False])
def test_a_prepared_set_on_a_canvas(prepared, memory):
    source = records(str(prepared / "out"), memory=memory, tokenizer=dict(name="words"), **OPTIONS)
    spec = source.spec
    assert spec.shape == (20, 20, 3) and spec.visible_shape == (16, 16) and spec.visible_multiple == 4 and spec.masked
    assert spec.seen_shape == (16, 16, 3) and source.test_size > 0
    batch = next(make_iterator(source, source.size))  # checked against the spec
    for text, mask, data in zip(source.tokenizer.decode(batch["tokens"]), batch["pixel_mask"], batch["data"]):
        height, width = PLACED[text.split()[1]]
        np.testing.assert_array_equal(mask, corner_mask(np.int32([[height, width]]), 20, 20)[0])
        assert data[:height, :width].std() > 0.1 and not data[~mask].any()
    held_out = source.reference("test")
    assert (
        held_out["pixel_mask"].shape == (source.test_size, 20, 20)
        and not held_out["data"][~held_out["pixel_mask"]].any()
    )
    other = records(str(prepared / "out"), memory=not memory, tokenizer=dict(name="words"), **OPTIONS)
    again = next(make_iterator(other, source.size))
    for name, value in batch.items():
        np.testing.assert_array_equal(again[name], value)
    plain = records(str(prepared / "out"), memory=memory, size=16)
    wider = records(str(prepared / "out"), memory=memory, canvas=(20, 24), **OPTIONS)
    assert len({made.fingerprint() for made in (source, plain, wider)}) == 3 and not plain.spec.masked
    assert wider.spec.shape == (20, 24, 3)


def test_folders_and_archives_are_placed_alike(prepared, tmp_path):
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", list(named_pictures().items()))
    one = folder(str(prepared / "in"), test_share=0.0, **OPTIONS)
    other = webdataset(str(tmp_path / "tars"), test_share=0.0, **OPTIONS)
    sums = []
    for source in (one, other):
        batch = next(make_iterator(source, 16))
        sizes = [tuple(mask.any(axis=axis).sum() for axis in (1, 0)) for mask in batch["pixel_mask"]]
        assert {size: sizes.count(size) for size in sizes} == dict.fromkeys(PLACED.values(), 4)
        seen = batch["data"][batch["pixel_mask"]]
        np.testing.assert_allclose(source.spec.std, seen.std(), rtol=1e-5)  # of what is to be seen
        sums.append(sorted(batch["data"].sum(axis=(1, 2, 3)).tolist()))
    np.testing.assert_allclose(*sums, rtol=1e-5)
    assert one.fingerprint() != folder(str(prepared / "in"), size=16, test_share=0.0).fingerprint()


def test_a_picture_is_mirrored_within_its_own_width(prepared):
    path = str(prepared / "out")
    plain, flipped = (records(path, labels=False, flip=flip, **OPTIONS) for flip in (False, True))
    count = plain.size
    own, seen = (next(make_iterator(source, count)) for source in (plain, flipped))
    np.testing.assert_array_equal(own["pixel_mask"], seen["pixel_mask"])
    turned = 0
    for image, other, mask in zip(own["data"], seen["data"], own["pixel_mask"]):
        height, width = mask.any(axis=1).sum(), mask.any(axis=0).sum()
        mirrored = image.copy()
        mirrored[:height, :width] = image[:height, :width][:, ::-1]
        assert (other == image).all() or (other == mirrored).all()
        turned += int((other == mirrored).all())
    assert 0 < turned < count
    image = np.arange(24.0).reshape(1, 2, 12, 1)
    np.testing.assert_array_equal(mirror().apply(image, np.zeros((1, 1))), image[:, :, ::-1])


def test_sets_on_canvases_of_several_shapes_take_turns(prepared):
    path = str(prepared / "out")
    children = [records(path, canvas=canvas, **OPTIONS) for canvas in ((20, 20), (16, 24))]
    mixture = mixed(children, make_schedule(2, None, (), None))
    shapes = set()
    iterator = make_iterator(mixture, 4)
    for _ in range(12):
        batch = next(iterator)
        check_batch(batch, mixture.spec)
        shapes.add(batch["data"].shape[1:])
    assert shapes == {(20, 20, 3), (16, 24, 3)} and mixture.spec.visible_shape == (16, 16)
    with pytest.raises(ValueError, match="differ in masked"):
        mixed([children[0], records(path, size=20)], make_schedule(2, None, (), None))


def test_a_cache_beside_masks_keeps_them_and_one_in_their_place_is_refused(prepared, tmp_path):
    source = records(str(prepared / "out"), **OPTIONS)
    brightness = lambda rows: {"features": rows["data"][:, ::5, ::5, :1]}
    both = with_cache(source, build_cache(tmp_path / "f", source, brightness, encoder_parts("brightness")))
    assert both.spec.feature_shape == (4, 4, 1) and next(make_iterator(both, 4))["pixel_mask"].shape == (4, 20, 20)
    dark = build_cache(tmp_path / "d", source, lambda rows: {"data": rows["data"] / 2}, encoder_parts("dark"))
    with pytest.raises(CacheError, match="nothing says where on them its own are"):
        with_cache(source, dark)


def test_what_makes_no_sense_is_refused(prepared, tmp_path):
    path = str(prepared / "out")
    write_folder(tmp_path / "same", {f"{i}.png": png((i, 0, 0), (8, 8)) for i in range(3)})
    command.run(
        ["folder", "--from", str(tmp_path / "same"), "--to", str(tmp_path / "out"), "--test-share", "0"], say=str
    )
    for options, message in [
        (dict(OPTIONS, bucket_multiple=4), "in buckets or on a canvas"),
        (dict(OPTIONS, fit="pad"), "keep their proportions. Leave `fit`"),
        (dict(size=16, canvas=(20, 20)), "Set mask_multiple"),
        (dict(OPTIONS, canvas=(20,)), "a canvas of .height, width."),
        (
            dict(OPTIONS, canvas=(20, 22)),
            r"canvas=\(20, 22\) with mask_multiple=4; expected multiples of it, such as \(20, 24\)",
        ),
        (dict(OPTIONS, canvas=(4, 80)), "Use sides of at most 64"),
        (dict(OPTIONS, mask_multiple=-4), "mask_multiple=-4; expected multiples"),
        (dict(OPTIONS, size=18), "size=18 with mask_multiple=4; expected multiples of it, such as 16"),
    ]:
        with pytest.raises(ValueError, match=message):
            records(path, **options)
    with pytest.raises(ValueError, match="needs `size`"):
        records(str(tmp_path / "out"), mask_multiple=4)
    with pytest.raises(ValueError, match="Latents are those of whole images"):
        latents(dict(name="records", path=path, **OPTIONS), autoencoder="nowhere")


def masked_batch():
    mask = corner_mask(np.int32([[4, 8], [8, 2]]), 8, 8)
    data = np.where(mask[..., None], np.float32(0.5), np.float32(0))
    return dict(data=data, pixel_mask=mask, mask=np.ones(2, np.float32), row=np.arange(2, dtype=np.int32))


def test_batches_with_masks_are_checked():
    spec, batch = DataSpec((8, 8, 1), visible_shape=(6, 6), visible_multiple=2), masked_batch()
    check_batch(batch, spec)
    for change, message in [
        ({"pixel_mask": batch["pixel_mask"][:, :4]}, r"bool\[2, 4, 8\]; it must be bool\[2, 8, 8\]"),
        ({"pixel_mask": batch["pixel_mask"].astype(np.float32)}, "float32"),
        ({"data": batch["data"] + 1}, "not zero outside"),
        ({"pixel_mask": batch["pixel_mask"] & False, "data": batch["data"] * 0}, "False everywhere"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_batch(batch | change, spec)
    with pytest.raises(ValueError, match="'pixel_mask' is missing"):
        check_batch({name: value for name, value in batch.items() if name != "pixel_mask"}, spec)
    with pytest.raises(ValueError, match="no network would read it"):
        check_batch(batch, DataSpec((8, 8, 1)))
    for wrong in (dict(visible_shape=(9, 8)), dict(visible_shape=(6, 6), visible_multiple=4), dict(visible_shape=(4,))):
        with pytest.raises(ValueError, match="visible_multiple"):
            DataSpec((8, 8, 1), **wrong)
