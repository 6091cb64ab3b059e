"""Images as pixel values."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from transformers import ViTConfig, ViTForImageClassification

from gating.data.images import load_image_processor, transform_images
from gating.models.sources import NewModel


def meta_model(**config) -> ViTForImageClassification:
    with torch.device("meta"):
        return ViTForImageClassification(
            ViTConfig(num_hidden_layers=1, hidden_size=12, num_attention_heads=2, **config)
        )


def picture(mode: str, *, width: int = 6, height: int = 9) -> Pillow.Image:
    channels = len(Pillow.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Pillow.fromarray(pixels.squeeze(), mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_images_of_any_size_and_mode_become_pixel_values_of_a_new_model(channels, mode):
    made = load_image_processor(NewModel("vit"), meta_model(image_size=8, num_channels=channels))
    features = Features({"image": Image(), "label": Value("int64")})
    images = [picture(mode), picture(mode, width=30)]
    table = Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    served = transform_images(table, made, num_channels=channels, where="train")
    rows = [served[0], served[1]]
    assert [row["labels"] for row in rows] == [0, 1]
    for row in rows:
        assert row["pixel_values"].shape == (channels, 8, 8)
        assert -1 <= row["pixel_values"].min() < 0 < row["pixel_values"].max() <= 1


def test_pixels_of_the_right_size_are_only_scaled():
    made = load_image_processor(NewModel("vit"), meta_model(image_size=[4, 4], num_channels=1))
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    features = Features({"image": Image(), "label": Value("int64")})
    table = Dataset.from_dict({"image": [Pillow.fromarray(pixels)], "label": [0]}, features=features)
    served = transform_images(table, made, num_channels=1, where="train")
    expected = torch.from_numpy(pixels.astype("float32"))[None] / 255 * 2 - 1
    assert torch.allclose(served[0]["pixel_values"], expected, atol=1e-6)


def test_files_of_images_can_be_named_in_a_column(tmp_path):
    picture("L").save(tmp_path / "one.png")
    made = load_image_processor(NewModel("vit"), meta_model(image_size=8, num_channels=3))
    table = Dataset.from_dict({"image": [str(tmp_path / "one.png")], "label": [0]})
    assert transform_images(table, made, num_channels=3, where="train")[0]["pixel_values"].shape == (3, 8, 8)
    (tmp_path / "one.png").unlink()
    with pytest.raises(FileNotFoundError, match="train data"):
        transform_images(table, made, num_channels=3, where="train")


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_brightness_is_kept_in_16_bits(mode):
    made = load_image_processor(NewModel("vit"), meta_model(image_size=4, num_channels=3))
    bytes_ = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    deep = Pillow.fromarray(bytes_.astype(np.uint16) * 257)
    deep = deep if mode == "I;16" else deep.convert("I")
    assert deep.mode == mode
    features = Features({"image": Image(), "label": Value("int64")})
    table = Dataset.from_dict({"image": [deep, Pillow.fromarray(bytes_)], "label": [0, 1]}, features=features)
    served = transform_images(table, made, num_channels=3, where="train")
    assert torch.equal(served[0]["pixel_values"], served[1]["pixel_values"])


def test_encoded_images_are_decoded_and_conversion_is_checked_at_once():
    image = Pillow.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) * 16)
    table = Dataset.from_dict({"image": [_tiff(image)], "label": [0]})
    made = load_image_processor(NewModel("vit"), meta_model(image_size=4, num_channels=1))
    assert transform_images(table, made, num_channels=1, where="train")[0]["pixel_values"].shape == (1, 4, 4)
    made = load_image_processor(NewModel("vit"), meta_model(image_size=4, num_channels=3))
    with pytest.raises(ValueError, match="first image"):
        transform_images(table, made, num_channels=1, where="train")


def _tiff(image: Pillow.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="TIFF")
    return buffer.getvalue()
