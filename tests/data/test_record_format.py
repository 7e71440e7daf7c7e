"""Records come back as they went in; what is no picture says so."""

import io

import numpy as np
import pytest
from PIL import Image
from real_data import noise_png, png

from flowjax.data.record_format import BadPicture, EncodedPicture, decode_picture, header_of, pack, size_of, unpack
from flowjax.data.resizing import resize


def test_what_goes_in_comes_out():
    content, pixels = noise_png(0, (5, 3))
    fields = {
        "image": pixels,
        "file": EncodedPicture(content, (3, 5)),
        "depth": np.float32([[1.5, -2]]),
        "caption": ["ein Bär – 熊", "two"],
        "label": 7,
        "none": None,
        "flag": True,
        "empty": np.zeros((0, 3), np.int32),
    }
    back = unpack(pack(fields))
    assert back.keys() == fields.keys()
    for name in ("image", "depth", "empty"):
        np.testing.assert_array_equal(back[name], fields[name])
        assert back[name].dtype == fields[name].dtype and not back[name].flags.writeable
    assert back["file"] == fields["file"]
    np.testing.assert_array_equal(back["file"].decode(), pixels)
    assert [back[n] for n in ("caption", "label", "none", "flag")] == [["ein Bär – 熊", "two"], 7, None, True]
    header = header_of(pack(fields))
    assert header["caption"][0] == "ein Bär – 熊" and size_of(header["image"]) == size_of(header["file"]) == (3, 5)


def test_foreign_and_cut_records_are_refused():
    with pytest.raises(ValueError, match="no record of FlowJAX"):
        unpack(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="cut off inside the field 'image'"):
        unpack(pack({"image": np.zeros((4, 4, 3), np.uint8)})[:-1])
    with pytest.raises(ValueError, match="'x' is float64"):
        pack({"x": np.zeros(2)})
    with pytest.raises(ValueError, match="'x' is dict"):
        pack({"x": {"array": 1}})


def test_transparent_parts_are_white_whatever_the_mode():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    expected = np.uint8([[[255, 0, 0], [255, 255, 255]]])
    for image, kind in ((rgba, "PNG"), (rgba, "WEBP"), (rgba.quantize(4), "PNG")):
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
        np.testing.assert_array_equal(decode_picture(buffer.getvalue()), expected, err_msg=f"{image.mode} {kind}")
    half = png((0, 0, 0, 128), (1, 1), mode="RGBA")
    assert abs(int(decode_picture(half)[0, 0, 0]) - 127) <= 1


def test_sixteen_bit_grey_is_scaled_and_turned_pictures_are_turned_back():
    buffer = io.BytesIO()
    Image.fromarray(np.uint16([[0, 65535]])).save(buffer, "PNG")
    np.testing.assert_array_equal(decode_picture(buffer.getvalue())[0, :, 0], [0, 255])
    turned, buffer = Image.new("RGB", (4, 2)), io.BytesIO()
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera held upright
    turned.save(buffer, "JPEG", exif=exif)
    assert decode_picture(buffer.getvalue()).shape == (4, 2, 3)


@pytest.mark.parametrize("content", [b"", b"hello", noise_png(1, (64, 64))[0][:3000]], ids=["empty", "text", "cut off"])
def test_what_is_no_whole_picture_is_a_bad_picture(content):
    with pytest.raises(BadPicture, match="the picture cannot be decoded: ."):
        decode_picture(content)


def test_resizing_keeps_proportions():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = (10, 20, 30)
    np.testing.assert_array_equal(resize(wide, (4, 4, 3), "crop"), np.broadcast_to(np.uint8([10, 20, 30]), (4, 4, 3)))
    padded = resize(wide, (8, 8, 3), "pad")
    assert (padded[:2] == 255).all() and (padded[6:] == 255).all()
    np.testing.assert_array_equal(padded[2:6], wide)
    halved = resize(np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 4, (2, 2, 1))
    np.testing.assert_array_equal(halved[..., 0], [[10, 18], [42, 50]])  # means of 2 x 2
    assert resize(np.full((2, 2, 3), (255, 0, 0), np.uint8), (2, 2, 1))[0, 0, 0] == 76  # 0.299 * 255
    with pytest.raises(ValueError, match="fit='stretch'"):
        resize(wide, (4, 4, 3), "stretch")
