"""Pixels: equal to what each model's own transformers processor makes, from a checkpoint's own files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.errors import SttmError

MODELS = ["videomae", "vivit", "timesformer", "vjepa2"]


def checkpoint(
    folder: Path,
    model_type: str,
    processor: Any = None,
    name: str = "preprocessor_config.json",
    **config: Any,
) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
    if processor is not None:
        (folder / name).write_text(json.dumps(processor))
    return folder


def noise(height: int, width: int, seed: int = 0, num_frames: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=random)


def image_processor(name: str, **options: Any):
    if name == "Vivit":
        from transformers.models.vivit.image_processing_vivit import VivitImageProcessor

        return VivitImageProcessor(**options)
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    return VideoMAEImageProcessorPil(**options)


def video_processor(model_type: str, **options: Any):
    """One of transformers' video processors, which need a working torchvision."""
    try:
        import torchvision  # noqa: F401 - the import itself is the question
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"video processors need torchvision: {error}")
    import transformers

    names = {"videomae": "VideoMAE", "vivit": "Vivit", "timesformer": "Timesformer", "vjepa2": "VJEPA2"}
    return getattr(transformers, f"{names[model_type]}VideoProcessor")(**options)


def assert_same_pixels(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # Both round to float32 after one to four operations on numbers up to 4: a few times 1.2e-7, never 1e-6.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# --- Their processors as the oracle ------------------------------------------------------------------------

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def sizes(size: dict[str, int], height: int, width: int) -> dict[str, Any]:
    return {"size": size, "crop_size": {"height": height, "width": width}}


IMAGE_CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "videomae": ("videomae", "VideoMAE", IMAGENET),
    "videomae-class-defaults": ("videomae", "VideoMAE", {}),
    "timesformer": ("timesformer", "VideoMAE", {"image_mean": [0.45] * 3, "image_std": [0.225] * 3}),
    "vivit": ("vivit", "Vivit", {}),
    "vivit-no-offset": ("vivit", "Vivit", {"offset": False, "rescale_factor": 1 / 255}),
    "small": ("videomae", "VideoMAE", sizes({"shortest_edge": 40}, 32, 36)),
    "exact-size": ("vivit", "Vivit", sizes({"height": 30, "width": 50}, 28, 28)),
    "crop-larger": ("videomae", "VideoMAE", sizes({"shortest_edge": 33}, 48, 37)),
    "bicubic": ("videomae", "VideoMAE", {"resample": 3}),
    "no-resize": ("videomae", "VideoMAE", {"do_resize": False, "crop_size": {"height": 20, "width": 20}}),
    "no-crop": ("vivit", "Vivit", {"do_center_crop": False}),
    "no-rescale": ("videomae", "VideoMAE", {"do_rescale": False}),
    "no-normalize": ("videomae", "VideoMAE", {"do_normalize": False}),
}


@pytest.mark.parametrize("case", IMAGE_CASES)
@pytest.mark.parametrize("shape", [(120, 160), (160, 121), (256, 340), (31, 57), (224, 224)])
def test_pixels_equal_the_image_processors(tmp_path, case, shape):
    model_type, name, options = IMAGE_CASES[case]
    theirs = image_processor(name, **options)
    theirs.save_pretrained(tmp_path)
    ours = Preprocess.from_folder(checkpoint(tmp_path, model_type))
    assert ours.resize_with == "pillow"
    frames_TCHW = noise(*shape)
    expected = theirs([frame.permute(1, 2, 0).numpy() for frame in frames_TCHW], return_tensors="pt")
    pixels_KTCHW = ours(frames_TCHW)
    assert pixels_KTCHW.dtype == torch.float32
    if case == "no-rescale":  # numbers up to 500: the same relative accuracy
        torch.testing.assert_close(pixels_KTCHW, expected["pixel_values"], rtol=1e-6, atol=1e-6)
    else:
        assert_same_pixels(pixels_KTCHW, expected["pixel_values"])


@settings(max_examples=15, deadline=None)
@given(height=st.integers(8, 400), width=st.integers(8, 400), seed=st.integers(0, 99))
def test_pixels_equal_the_image_processors_at_any_size(tmp_path_factory, height, width, seed):
    for model_type, name in (("videomae", "VideoMAE"), ("vivit", "Vivit")):
        folder = tmp_path_factory.mktemp(model_type)
        theirs = image_processor(name)
        theirs.save_pretrained(folder)
        frames_TCHW = noise(height, width, seed, num_frames=1)
        expected = theirs([frames_TCHW[0].permute(1, 2, 0).numpy()], return_tensors="pt")["pixel_values"]
        assert_same_pixels(Preprocess.from_folder(checkpoint(folder, model_type))(frames_TCHW), expected)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("shape", [(120, 160), (301, 200), (480, 640), (31, 57)])
def test_pixels_equal_the_video_processors(tmp_path, model_type, shape):
    theirs = video_processor(model_type)
    theirs.save_pretrained(tmp_path)
    ours = Preprocess.from_folder(checkpoint(tmp_path, model_type))
    frames_TCHW = noise(*shape)
    output = theirs(frames_TCHW, return_tensors="pt")
    assert_same_pixels(ours(frames_TCHW), output.get("pixel_values", output.get("pixel_values_videos")))


def test_vjepa2_by_hand(tmp_path):
    """What V-JEPA 2's processor does, step by step after its source, as it cannot be imported everywhere."""
    settings = {
        "video_processor_type": "VJEPA2VideoProcessor",
        "crop_size": 128,
        "size": {"shortest_edge": 7},
    }
    folder = checkpoint(tmp_path, "vjepa2", settings, "video_preprocessor_config.json", frames_per_clip=16)
    ours = Preprocess.from_folder(folder)
    assert (ours.resize, ours.resize_with, ours.sampling.num_frames) == (146, "torch", 16)
    frames_TCHW = noise(200, 300)
    resized = torch.nn.functional.interpolate(frames_TCHW, (146, 219), mode="bilinear", antialias=True)
    cut = resized[:, :, 9:137, 45:173].double() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert_same_pixels(ours(frames_TCHW)[0], ((cut - mean[:, None, None]) / std[:, None, None]).float())


@pytest.mark.parametrize("model_type", MODELS)
def test_transformers_reads_what_we_write(tmp_path, model_type):
    ours = Preprocess.from_folder(checkpoint(tmp_path, model_type))
    ours = replace(ours, sampling=replace(ours.sampling, mode="dense", stride=4))
    (written := tmp_path / "written").mkdir()
    file = ours.to_folder(checkpoint(written, model_type))
    assert Preprocess.from_folder(written) == ours
    frames_TCHW = noise(90, 130)
    if file.name == "preprocessor_config.json":
        theirs = type(image_processor(ours.processor)).from_pretrained(written)
        expected = theirs([f.permute(1, 2, 0).numpy() for f in frames_TCHW], return_tensors="pt")
        assert_same_pixels(ours(frames_TCHW), expected["pixel_values"])
    else:
        theirs = type(video_processor(model_type)).from_pretrained(written)
        assert_same_pixels(ours(frames_TCHW), theirs(frames_TCHW, return_tensors="pt")["pixel_values_videos"])


# --- Crops, layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 80), (80, 32), (32, 32)])
@pytest.mark.parametrize("resize_with", ["pillow", "torch"])
def test_three_crops_lie_along_the_longer_side(shape, resize_with):
    plain = Preprocess("VideoMAE", Sampling(2), 32, (32, 32), 1.0, 0.0, (0.0,) * 3, (1.0,) * 3)
    prepare = replace(plain, resize_with=resize_with)
    frames_TCHW = noise(*shape)
    crops_KTCHW = prepare(frames_TCHW, crops=3)
    assert crops_KTCHW.shape == (3, 2, 3, 32, 32)
    assert torch.equal(crops_KTCHW[1:2], prepare(frames_TCHW))
    assert torch.equal(crops_KTCHW[0], frames_TCHW[:, :, :32, :32].float())
    assert torch.equal(crops_KTCHW[2], frames_TCHW[:, :, -32:, -32:].float())


@pytest.mark.parametrize("resize_with", ["pillow", "torch"])
@pytest.mark.parametrize("shape", [(7, 300), (301, 8), (40, 90), (20, 20), (300, 500)])
@pytest.mark.parametrize("crops", [1, 3])
def test_cutting_before_resizing_gives_what_cutting_after_it_gives(monkeypatch, resize_with, shape, crops):
    """Frames that would become huge are cut first: with Pillow within a level, with torch, which rounds twice, two."""
    plain = Preprocess("VideoMAE", Sampling(2), 64, (48, 56), 1.0, 0.0, (0.0,) * 3, (1.0,) * 3)
    for resample in ("bilinear", "bicubic"):
        prepare = replace(plain, resize_with=resize_with, resample=resample)
        frames_TCHW = noise(*shape)
        whole = prepare.resize_and_crop(frames_TCHW, crops).int()
        with monkeypatch.context() as context:
            context.setattr("sttm.data.transforms.preprocess.LARGEST_RESIZED", 48 * 56)
            cut = prepare.resize_and_crop(frames_TCHW, crops).int()
        difference = (cut - whole).abs()
        assert difference.max() <= (1 if resize_with == "pillow" else 2)
        assert (difference > 0).float().mean() < (0.005 if resize_with == "pillow" else 0.2)


def test_one_frame_repeated_is_prepared_once_and_as_its_copies():
    prepare = Preprocess("VideoMAE", Sampling(2), 32, (32, 32), 1 / 255, 0.0, (0.5,) * 3, (0.5,) * 3)
    frame = noise(50, 70, num_frames=1)
    repeated = prepare.resize_and_crop(frame.expand(16, -1, -1, -1), 3)
    assert repeated.stride(1) == 0
    assert torch.equal(prepare(frame.expand(16, -1, -1, -1), 3), prepare(frame.repeat(16, 1, 1, 1), 3))


def test_a_frame_that_becomes_huge_is_refused_where_nothing_is_cut():
    prepare = Preprocess("VideoMAE", Sampling(2), 224, None, 1 / 255, 0.0, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(SttmError, match=r"frames of 60000x1 pixels would become 13440000x224; cut or scale"):
        prepare(noise(1, 60_000, num_frames=1))


@pytest.mark.parametrize("model_type", ["videomae", "vjepa2"])
def test_memory_layout_changes_nothing(tmp_path, model_type):
    prepare = Preprocess.from_folder(checkpoint(tmp_path, model_type))
    frames_TCHW = noise(240, 320)
    untouched = frames_TCHW.clone()
    pixels = prepare(frames_TCHW)
    assert torch.equal(prepare(frames_TCHW.contiguous(memory_format=torch.channels_last)), pixels)
    assert torch.equal(frames_TCHW, untouched)
    assert torch.equal(torch.cat([prepare(frame[None])[0] for frame in frames_TCHW]), pixels[0])


# --- Files --------------------------------------------------------------------------------------------------


def test_published_defaults_follow_the_config(tmp_path):
    def default(model_type: str, **config: Any) -> Preprocess:
        return Preprocess.from_folder(checkpoint(tmp_path, model_type, **config))

    videomae = default("videomae", image_size=112, num_frames=8)
    assert (videomae.resize, videomae.crop, videomae.sampling) == (112, (112, 112), Sampling(8))
    assert videomae.mean == (0.485, 0.456, 0.406)
    vivit = default("vivit")
    assert (vivit.resize, vivit.crop, vivit.offset, vivit.sampling.num_frames) == (256, (224, 224), -1, 32)
    timesformer = default("timesformer", image_size=[448, 448], num_frames=16)
    assert (timesformer.resize, timesformer.crop, timesformer.std) == (448, (448, 448), (0.225,) * 3)
    vjepa2 = default("vjepa2", crop_size=384, frames_per_clip=64)
    assert (vjepa2.resize, vjepa2.crop, vjepa2.sampling.num_frames) == (438, (384, 384), 64)


def test_old_new_and_nested_files(tmp_path):
    old = {
        "feature_extractor_type": "VideoMAEFeatureExtractor",
        "size": 64,
        "crop_size": 56,
        "do_resize": None,
    }
    prepare = Preprocess.from_folder(checkpoint(tmp_path, "timesformer", old))
    assert (prepare.resize, prepare.crop, prepare.mean) == (64, (56, 56), (0.5,) * 3)
    checkpoint(tmp_path, "timesformer", {"crop_size": 52}, "video_preprocessor_config.json")
    assert Preprocess.from_folder(tmp_path).crop == (52, 52)  # before the image processor's
    nested = {"video_processor": {"video_processor_type": "VideoMAEVideoProcessor", "crop_size": 48}}
    checkpoint(tmp_path, "videomae", nested, "processor_config.json")
    assert Preprocess.from_folder(tmp_path).crop == (48, 48)
    with pytest.raises(SttmError, match="read first"):
        prepare.to_folder(tmp_path)


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        ({"image_mean": "red"}, "image_mean is 'red'"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "has NaN, which is no number"),
        ({"crop_size": -3}, "crop_size"),
        ({"crop_size": {"height": 3}}, "crop_size without height and width"),
        ({"size": {"longest_edge": 300}}, "size"),
        ({"size": {"height": 30}}, "size without height and width"),
        ({"resample": 1}, "resample is 1"),
        ({"do_resize": "yes"}, "do_resize is 'yes'"),
        ({"image_processor_type": "CLIPImageProcessor"}, "made for 'CLIPImageProcessor'"),
        ({"frame_sampling": "random"}, "frame_sampling is 'random'"),
        ([1, 2], "holds a list"),
    ],
)
def test_impossible_settings_give_one_sentence(tmp_path, processor, says):
    with pytest.raises(SttmError, match=says) as caught:
        Preprocess.from_folder(checkpoint(tmp_path, "videomae", processor))
    assert "\n" not in str(caught.value) and "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        ("", "not valid JSON"),
        ('{"model_type": "videomae", ', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        ("[]", "holds a list"),
        ("{}", "model_type=None; known families are videomae, vivit, timesformer, vjepa2"),
        ('{"model_type": "bert"}', "model_type='bert'"),
        ('{"model_type": ["videomae"]}', "known families"),
        ('{"model_type": "videomae", "num_frames": 0}', "num_frames is 0"),
        ('{"model_type": "videomae", "image_size": "big"}', "image_size is 'big'"),
    ],
)
def test_broken_config_gives_one_sentence(tmp_path, content, says):
    if isinstance(content, bytes):
        (tmp_path / "config.json").write_bytes(content)
    elif content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SttmError, match=says) as caught:
        Preprocess.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_frames_that_are_no_clip(tmp_path):
    prepare = Preprocess.from_folder(checkpoint(tmp_path, "videomae"))
    for frames in (noise(8, 8)[0], noise(8, 8).float(), noise(8, 8)[:, :2], noise(8, 8)[:0]):
        with pytest.raises(SttmError, match="are no clip"):
            prepare(frames)
    for crops in (0, 2, 5):
        with pytest.raises(SttmError, match="give 1 or 3"):
            prepare(noise(8, 8), crops=crops)
    with pytest.raises(SttmError, match="whole frames"):
        replace(prepare, crop=None)(noise(8, 8), crops=3)


def test_a_clip_keeps_its_values_in_range(tmp_path):
    """ViViT's scale, offset and statistics after each other, at the two ends of the scale."""
    prepare = Preprocess.from_folder(checkpoint(tmp_path, "vivit", image_size=16))
    black, white = np.zeros((1, 3, 20, 20), np.uint8), np.full((1, 3, 20, 20), 255, np.uint8)
    assert prepare(torch.from_numpy(black)).unique().tolist() == [-3]
    assert prepare(torch.from_numpy(white)).unique().tolist() == [1]
