"""What a user holds becomes the contract's image, or a message that says what to pass instead."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from metanas_client import InvalidRequestError, UnsupportedImageError
from metanas_client.images import encode_image, encode_images
from metanas_proto.v1 import few_shot_pb2 as pb

Grey = npt.NDArray[np.uint8]


def decode(image: pb.Image) -> Image.Image:
    assert image.WhichOneof("content") == "encoded"
    return Image.open(io.BytesIO(image.encoded))


def test_a_uint8_array_travels_as_its_own_bytes(grey: Grey) -> None:
    tensor = encode_image(grey, where="image").tensor

    assert tensor.data_type == pb.Tensor.DATA_TYPE_UINT8
    assert list(tensor.shape) == [2, 3]
    assert tensor.data == bytes([0, 1, 2, 253, 254, 255])


def test_a_transposed_array_travels_row_by_row(grey: Grey) -> None:
    tensor = encode_image(grey.T, where="image").tensor

    assert list(tensor.shape) == [3, 2]
    assert tensor.data == bytes([0, 253, 1, 254, 2, 255])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_floats_of_any_width_and_byte_order_travel_as_little_endian_float32(dtype: str) -> None:
    tensor = encode_image(np.array([[0.0, 0.5], [0.25, 1.0]], dtype=dtype), where="image").tensor

    assert tensor.data_type == pb.Tensor.DATA_TYPE_FLOAT32
    assert tensor.data == np.array([0.0, 0.5, 0.25, 1.0], dtype="<f4").tobytes()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colour_arrays_keep_their_channels_last(channels: int) -> None:
    tensor = encode_image(np.zeros((5, 6, channels), dtype=np.uint8), where="image").tensor

    assert list(tensor.shape) == [5, 6, channels]
    assert len(tensor.data) == 5 * 6 * channels


def test_the_bytes_of_a_file_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"not even a JPEG: the server judges that")

    assert encode_image(path, where="image").encoded == path.read_bytes()
    assert encode_image(str(path), where="image").encoded == path.read_bytes()
    assert encode_image(path.read_bytes(), where="image").encoded == path.read_bytes()
    assert encode_image(bytearray(path.read_bytes()), where="image").encoded == path.read_bytes()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        encode_image(tmp_path / "nowhere.png", where="image")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_pil_image_becomes_a_png_with_the_same_pixels(mode: str) -> None:
    image = Image.effect_noise((9, 7), 80).convert("RGB").convert(mode)

    decoded = decode(encode_image(image, where="image"))

    assert decoded.format == "PNG"
    assert decoded.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_a_cmyk_image_becomes_an_rgb_png() -> None:
    image = Image.new("CMYK", (2, 2), (0, 255, 255, 0))

    assert decode(encode_image(image, where="image")).getpixel((0, 0)) == (255, 0, 0)


def test_a_pil_photo_keeps_its_orientation_and_drops_the_rest_of_its_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x013B] = "the owner's name"
    photo = io.BytesIO()
    Image.new("RGB", (4, 2)).save(photo, format="JPEG", exif=exif)

    sent = encode_image(Image.open(photo), where="image")

    assert dict(decode(sent).getexif()) == {0x0112: 6}
    assert b"owner" not in sent.encoded


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_a_pil_mode_without_a_range_is_refused(mode: str) -> None:
    with pytest.raises(
        UnsupportedImageError, match=f"PIL mode '{mode}' has no fixed range.*convert it to 'L' or 'RGB'"
    ):
        encode_image(Image.new(mode, (2, 2)), where="image")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 4), dtype=np.int64), "an array of int64; convert it to uint8"),
        (np.zeros((3, 4), dtype=bool), "an array of bool; convert it to uint8"),
        (np.zeros((3, 4), dtype=np.float16), "an array of float16; convert it"),
        (np.zeros(7, dtype=np.uint8), r"shape \(7,\); pass \(height, width\)"),
        (np.zeros((0, 4), dtype=np.uint8), r"shape \(0, 4\) has no pixels"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"8 channels; channels come last: np\.moveaxis"),
        (np.zeros((8, 8, 2), dtype=np.uint8), "2 channels; pass 1, 3 or 4 channels"),
    ],
)
def test_an_array_without_an_honest_encoding_is_refused(array: npt.NDArray[Any], said: str) -> None:
    with pytest.raises(UnsupportedImageError, match=said):
        encode_image(array, where="image")


@pytest.mark.parametrize(
    ("value", "said"), [(255.0, "0 to 255; they must be in 0..1: divide by 255"), (-0.5, "-0.5"), (np.nan, "nan")]
)
def test_floats_outside_0_to_1_are_refused_before_they_are_sent(value: float, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        encode_image(np.array([[0.0, value]]), where="image")


def test_something_that_is_no_image_is_named_with_its_place() -> None:
    with pytest.raises(UnsupportedImageError, match=r"class 'cat', image 1: float is not an image; pass a path"):
        encode_images([b"png", 0.5], where="class 'cat'")  # type: ignore[list-item]


@pytest.mark.parametrize(
    "image", [b"png", bytearray(b"png"), "a.png", Path("a.png"), Image.new("L", (2, 2)), np.zeros((2, 2), np.uint8)]
)
def test_one_bare_image_is_a_type_error_that_says_to_pass_a_list(image: Any) -> None:
    with pytest.raises(TypeError, match="pass a list of images") as caught:
        encode_images(image, where="images")
    assert isinstance(caught.value, UnsupportedImageError)


@pytest.mark.parametrize("thing", [None, 7, {"cat": b"png"}])
def test_what_is_not_a_list_at_all_is_refused(thing: Any) -> None:
    with pytest.raises(UnsupportedImageError, match="is not a list of images; pass a list"):
        encode_images(thing, where="images")


def test_a_batch_of_four_dimensions_is_one_image_for_each_entry() -> None:
    batch = np.arange(2 * 3 * 4 * 1, dtype=np.uint8).reshape(2, 3, 4, 1)

    images = encode_images(batch, where="images")

    assert [list(image.tensor.shape) for image in images] == [[3, 4, 1], [3, 4, 1]]
    assert images[1].tensor.data == bytes(range(12, 24))


@pytest.mark.parametrize("shape", [(5, 28, 28), (28, 28, 3)])
def test_an_array_of_three_dimensions_is_refused_as_ambiguous(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedImageError, match=r"pass list\(array\) for several images, \[array\] for one"):
        encode_images(np.zeros(shape, dtype=np.uint8), where="images")


def test_a_generator_of_images_is_a_list_too(grey: Grey) -> None:
    assert len(encode_images((grey for _ in range(3)), where="images")) == 3
