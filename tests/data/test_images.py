# SPDX-License-Identifier: Apache-2.0
"""Cached pixels, normalized, are what open_clip's and torchvision's transforms make."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mdft_fast.checkpoints import as_preprocess, edges_before_crop
from mdft_fast.checkpoints.library_folders import processor_facts
from mdft_fast.data import FolderSource, Samples, load_samples
from mdft_fast.data.images import decoding
from mdft_fast.data.images.decoding import decode, fit
from mdft_fast.errors import MdftError
from tests.data.on_disk import noise

pytestmark = pytest.mark.usefixtures("own_cache")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# (x / 255 - mean) / std: three roundings of float32 of values up to 4, in either order.
ROUND_OFF = 4e-6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A file of every kind: odd sizes, modes, and one turned by EXIF."""
    folder = tmp_path_factory.mktemp("pictures") / "flat"
    rng = np.random.default_rng(0)
    color = Image.fromarray(noise(rng, 47, 31))
    alpha = Image.fromarray(np.dstack([noise(rng, 33, 50), noise(rng, 33, 50, 1)]), "RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees; torchvision's loader does not
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("tall.png", color, {}),
        ("wide.png", Image.fromarray(noise(rng, 29, 101)), {}),
        ("small.png", Image.fromarray(noise(rng, 7, 5)), {}),
        ("exact.png", Image.fromarray(noise(rng, 24, 24)), {}),
        ("line.png", Image.fromarray(noise(rng, 3, 64)), {}),
        ("gray.png", color.convert("L"), {}),
        ("palette.png", color.quantize(17), {}),
        ("palette.gif.png", color.convert("P", palette=Image.Palette.ADAPTIVE), {}),
        ("alpha.png", alpha, {}),
        ("gray_alpha.png", alpha.convert("LA"), {}),
        ("one_bit.png", color.convert("1"), {}),
        ("cmyk.jpg", color.convert("CMYK"), {}),
        ("turned.jpg", color, {"exif": turned}),
        ("plain.webp", color, {}),
    ]
    folder.mkdir()
    for name, image, options in made:
        image.save(folder / name, **options)
    return sorted(folder.iterdir())


def cached(files: list[Path], **how: Any) -> Any:
    samples = load_samples(FolderSource(files[0].parent), {"mean": MEAN, "std": STD, **how})
    return samples.batch(torch.arange(len(samples)))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [24, 17])
def test_the_cached_path_is_open_clips(
    size: int, interpolation: str, resize: str, files: list[Path]
) -> None:
    open_clip = pytest.importorskip("open_clip")
    from torchvision.datasets.folder import default_loader

    transform = open_clip.image_transform(
        size, is_train=False, mean=MEAN, std=STD, resize_mode=resize, interpolation=interpolation
    )
    wanted = torch.stack([transform(default_loader(str(file))) for file in files])
    how = {"size": size, "resize": resize, "interpolation": interpolation}
    ours = cached(files, **how)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=ROUND_OFF)


def test_other_shapes_than_squares_are_open_clips(files: list[Path]) -> None:
    open_clip = pytest.importorskip("open_clip")
    transform = open_clip.image_transform((20, 30), is_train=False, mean=MEAN, std=STD)
    preprocess = as_preprocess({"size": [20, 30], "mean": MEAN, "std": STD})
    for file in files:
        wanted = transform(decode(file)) * torch.tensor(STD).view(3, 1, 1)
        wanted = (wanted + torch.tensor(MEAN).view(3, 1, 1)) * 255
        ours = torch.from_numpy(fit(decode(file), preprocess)).permute(2, 0, 1)
        assert torch.equal(ours, wanted.round().to(torch.uint8)), file.name


def test_bilinear_is_timms_and_torchvisions(files: list[Path]) -> None:
    timm = pytest.importorskip("timm")
    from torchvision import transforms
    from torchvision.datasets.folder import default_loader

    transform = timm.data.create_transform(
        (3, 24, 24), interpolation="bilinear", mean=MEAN, std=STD, crop_pct=1.0
    )
    resize = transforms.Compose([transforms.Resize(24), transforms.CenterCrop(24)])  # bilinear
    preprocess = as_preprocess({"size": 24, "mean": MEAN, "std": STD, "interpolation": "bilinear"})
    ours = cached(files, size=24, interpolation="bilinear")
    for file, mine in zip(files, ours, strict=True):
        image = default_loader(str(file))
        torch.testing.assert_close(mine, transform(image), rtol=0, atol=ROUND_OFF)
        assert np.array_equal(fit(image, preprocess), np.asarray(resize(image)))


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95])
@pytest.mark.parametrize("size", [24, 33, [20, 30]], ids=str)
@pytest.mark.parametrize(
    ("resize", "mode", "interpolation"),
    [("shortest", "center", "bicubic"), ("squash", "squash", "bilinear")],
)
def test_a_crop_of_less_than_all_is_timms(
    resize: str, mode: str, interpolation: str, size: Any, crop_pct: float, files: list[Path]
) -> None:
    timm = pytest.importorskip("timm")
    pair = [size, size] if isinstance(size, int) else size
    given = {"mean": MEAN, "std": STD, "interpolation": interpolation, "crop_pct": crop_pct}
    config = timm.data.resolve_data_config({"input_size": (3, *pair), "crop_mode": mode, **given})
    transform = timm.data.create_transform(**config)
    preprocess = as_preprocess({"size": size, "resize": resize, **given})
    for file in files:
        image = decode(file)
        ours = Samples(torch.from_numpy(fit(image, preprocess))[None], preprocess)
        (mine,) = ours.batch(torch.tensor([0]))
        torch.testing.assert_close(mine, transform(image), rtol=0, atol=ROUND_OFF)


def test_the_crop_is_transformers_to_a_pixel(files: list[Path]) -> None:
    """Where the rest of an edge is odd, transformers' crop may lie one pixel before torchvision's.

    Both cut at half the rest; transformers rounds down, torchvision to even.
    """
    transformers = pytest.importorskip("transformers")
    processor = transformers.BitImageProcessorPil(  # as DINOv2's, with smaller edges
        do_center_crop=True, crop_size={"height": 24, "width": 24}, resample=3,
        size={"shortest_edge": 28}, do_rescale=False, do_normalize=False,
    )  # fmt: skip
    said = processor_facts(processor.to_dict())
    preprocess = as_preprocess({**said, "mean": 0.5, "std": 0.5})
    assert edges_before_crop(preprocess["size"], preprocess["crop_pct"]) == [28, 28]
    same = 0
    for file in files:
        image = decode(file)
        (theirs,) = processor(image)["pixel_values"]
        theirs = np.asarray(theirs).transpose(1, 2, 0)
        ours = fit(image, preprocess)
        same += np.array_equal(ours, theirs)
        shifted = [(0, 0), (0, 1), (1, 0)]
        parts = [(ours[: 24 - y, : 24 - x], theirs[y:, x:]) for y, x in shifted]
        assert any(np.array_equal(*pair) for pair in parts), file.name
    assert same > len(files) / 2


def test_interpolations_and_ways_of_resizing_differ(files: list[Path]) -> None:
    image = decode(next(file for file in files if file.name == "wide.png"))
    given = {"size": 24, "mean": 0.5, "std": 0.5}
    made = {
        fit(image, as_preprocess({**given, "resize": r, "interpolation": i})).tobytes()
        for r in ("shortest", "squash")
        for i in ("bicubic", "bilinear")
    }
    assert len(made) == 4


def test_gray_may_stay_gray() -> None:
    image = Image.fromarray(noise(np.random.default_rng(1), 28, 28, 1)[..., 0])
    preprocess = as_preprocess({"size": 19, "mean": 0.5, "std": 0.5})
    gray, color = fit(image, preprocess, channels=1), fit(image, preprocess)
    assert gray.shape == (19, 19, 1)
    assert np.array_equal(np.repeat(gray, 3, axis=-1), color)


def test_broken_files_are_named(files: list[Path], tmp_path: Path) -> None:
    content = next(file for file in files if file.name == "turned.jpg").read_bytes()
    for name, part in {"empty.jpg": b"", "cut.jpg": content[:400], "text.png": b"hello"}.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(MdftError, match=rf"{name}: not a readable image"):
            decode(tmp_path / name)
    with pytest.raises(MdftError, match=r"row 3: not a readable image"):
        decode(io.BytesIO(b"hello"), "row 3")


def test_nothing_but_images_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def started(*_: Any, **__: Any) -> Any:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(script)
    with pytest.raises(MdftError, match=r"x.png: not a readable image; must be one of JPEG, PNG"):
        decode(tmp_path / "x.png")
    with pytest.raises(MdftError, match=r"^row 3: not a readable image; must be one of JPEG"):
        decode(io.BytesIO(script), "row 3")


@pytest.mark.parametrize("kind", ["16.png", "16.tif", "16.ppm", "16.pgm"])
def test_sixteen_bits_are_scaled_to_eight(kind: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    path = tmp_path / kind
    if kind == "16.ppm":  # a maximum of its own, of 10 bits
        path.write_bytes(b"P5 32 32 1023\n" + (ramp // 64).astype(">u2").tobytes())
        ramp = (ramp // 64) / 1023 * 65535
    elif kind == "16.pgm":
        path.write_bytes(b"P5 32 32 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    got = np.asarray(decode(path)).astype(float)
    # Half a step of 8 bits for the one rounding, and one of 16 bits that PIL may round by.
    assert np.abs(got[..., 0] - ramp / 257).max() <= 0.5 + 1 / 257
    for image in (Image.fromarray(np.asarray(ramp, np.uint16)), decode(path)):
        assert len(np.unique(fit(image, as_preprocess({"size": 32, "mean": 0, "std": 1})))) > 200


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_pixels_without_a_scale_are_refused(dtype: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 8), dtype))
    image.save(tmp_path / "x.tif")
    with pytest.raises(MdftError, match=r"x.tif: its pixels must have 8 or 16 bits, got PIL's"):
        decode(tmp_path / "x.tif")
    with pytest.raises(MdftError, match=r"pixels must have 8 or 16 bits"):
        fit(image, as_preprocess({"size": 8, "mean": 0, "std": 1}))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_followed_where_it_is_asked_for(
    orientation: int, tmp_path: Path
) -> None:
    image = Image.fromarray(noise(np.random.default_rng(1), 20, 30))
    exif = image.getexif()
    exif[0x112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(decode(tmp_path / "x.png")), np.asarray(image))
    with Image.open(tmp_path / "x.png") as stored:
        wanted = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(np.asarray(decode(tmp_path / "x.png", turned=True)), wanted)


def test_huge_images_are_made_smaller_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MOST_PIXELS", 64 * 64)
    image = Image.fromarray(noise(np.random.default_rng(1), 100, 100))
    for name in ("x.jpg", "x.png"):
        image.save(tmp_path / name)
    assert decode(tmp_path / "x.jpg").size == (50, 50)
    with pytest.raises(MdftError, match=r"x.png: must have at most 4,096 pixels, got 100 x 100"):
        decode(tmp_path / "x.png")


def test_of_a_thin_image_the_center_alone_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(noise(np.random.default_rng(1), 8, 400))
    preprocess = as_preprocess({"size": 16, "mean": 0.5, "std": 0.5})
    whole = fit(image, preprocess).astype(int)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 16 * 400)
    # PIL rounds the box to float32 and then each pixel: a step at the most.
    assert np.abs(fit(image, preprocess).astype(int) - whole).max() <= 1
    monkeypatch.undo()
    thinnest = Image.new("RGB", (200_000, 2))  # 16 x 1,600,000 before the crop
    monkeypatch.setattr(decoding, "MOST_PIXELS", 1_000_000)
    assert fit(thinnest, preprocess).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF"])
def test_every_kind_of_image_is_read_whatever_its_name(kind: str, tmp_path: Path) -> None:
    image = Image.fromarray(noise(np.random.default_rng(1), 20, 30))
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(tmp_path / "x.jpg", format=kind, **more)
    with Image.open(tmp_path / "x.jpg") as stored:
        assert stored.format == kind
        wanted = np.asarray(stored.convert("RGB"))
    assert np.array_equal(np.asarray(decode(tmp_path / "x.jpg")), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "longest"}, r"'resize' must be one of \['shortest', 'squash'\], got 'longest'"),
        ({"interpolation": "cubic"}, r"'interpolation' must be .*got 'cubic'; did you mean 'bic"),
        ({"mean": 127.5}, r"'mean' must be on the scale 0 to 1, got 127.5; .* a 255th"),
        ({"std": [58.4, 57.1, 57.4]}, r"'std' must be on the scale 0 to 1, got \[58.4, 57.1, 57.4"),
        ({"crop_pct": 0.099}, r"'crop_pct' must be in \[0.1, 1\], got 0.099"),
        ({"crop_pct": 1.2}, r"'crop_pct' must be in \[0.1, 1\], got 1.2"),
        ({"crop_pct": [1, 1]}, r"'crop_pct' must be one number, got \[1, 1\]"),
        ({"resise": "squash"}, r"keys must be .*got 'resise'; did you mean 'resize'"),
    ],
)
def test_wrong_preprocesses_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MdftError, match=message):
        as_preprocess({"size": 8, "mean": 0.5, "std": 0.5, **change})


def test_an_old_pools_preprocess_means_the_defaults() -> None:
    old = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}
    said = {"size": 8, "mean": 0.5, "std": 0.5, "resize": "shortest", "interpolation": "bicubic"}
    said |= {"crop_pct": 1}
    assert as_preprocess(old) == as_preprocess(said)
    assert as_preprocess({**said, "resize": "squash"}) != as_preprocess(old)
