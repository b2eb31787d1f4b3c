"""How a source image becomes the teacher's input, and where each of its pixels lands."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from catalog.errors import UserError
from pipeline.teachers.framing import Framing, framing

SOURCES = [(480, 640), (640, 480), (128, 128), (360, 640), (1000, 300)]


@pytest.mark.parametrize(
    ("name", "source", "size", "steps"),
    [
        ("crop", (480, 640), (392, 518), ["resize 392x518"]),
        ("crop", (640, 480), (518, 518), ["resize 686x518", "crop 84,0"]),
        ("crop", (128, 128), (518, 518), ["resize 518x518"]),
        ("pad", (480, 640), (518, 518), ["resize 392x518", "pad 63,63,0,0"]),
        ("pad", (640, 480), (518, 518), ["resize 518x392", "pad 0,0,63,63"]),
        ("pad", (128, 128), (518, 518), ["resize 518x518"]),
        ("crop", (10, 2000), (14, 518), ["resize 14x518"]),
    ],
)
def test_published_sizes(name, source, size, steps):
    made = framing(name, *source, 518, 14)
    assert made.size == size
    keys = {"resize": ("height", "width"), "crop": ("top", "left"), "pad": ("top", "bottom", "left", "right")}
    found = []
    for step in made.steps:
        numbers = [str(step[key]) for key in keys[step["step"]]]
        found.append(f"{step['step']} {('x' if step['step'] == 'resize' else ',').join(numbers)}")
    assert found == steps


@pytest.mark.parametrize("name", ["crop", "pad"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_marked_pixel_lands_where_the_affine_says(name, source):
    made = framing(name, *source, 518, 14)
    (a, b, c), (d, e, f) = made.source_to_teacher
    black = np.zeros((*source, 3), np.uint8)
    base = made.apply(black)
    for share_y, share_x in [(0.4, 0.2), (0.5, 0.5), (0.58, 0.85)]:
        row, column = int(share_y * source[0]), int(share_x * source[1])
        marked = black.copy()
        marked[row, column] = 255
        light = (made.apply(marked) - base)[0].clamp(min=0)
        assert light.sum() > 0
        y = float((light.sum(1) * (torch.arange(light.shape[0]) + 0.5)).sum() / light.sum())
        x = float((light.sum(0) * (torch.arange(light.shape[1]) + 0.5)).sum() / light.sum())
        centre_x, centre_y = column + 0.5, row + 0.5
        assert abs(x - (a * centre_x + b * centre_y + c)) < 0.5
        assert abs(y - (d * centre_x + e * centre_y + f)) < 0.5


@pytest.mark.parametrize("name", ["crop", "pad"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_checkerboard_lands_square_by_square(name, source):
    """Every pixel further than 2 pixels from an edge of its square has the colour that the affine predicts."""
    made = framing(name, *source, 224, 14)
    (a, _, c), (_, e, f) = made.source_to_teacher
    side = max(source) // 8
    squares = np.add.outer(np.arange(source[0]) // side, np.arange(source[1]) // side) % 2
    image = np.repeat((squares * 255).astype(np.uint8)[..., None], 3, axis=2)
    result = made.apply(image)[0].numpy()
    y = (np.arange(made.size[0]) + 0.5 - f) / e
    x = (np.arange(made.size[1]) + 0.5 - c) / a
    clear_y = (y > 0) & (y < source[0]) & (np.minimum(y % side, side - y % side) > 2 / e)
    clear_x = (x > 0) & (x < source[1]) & (np.minimum(x % side, side - x % side) > 2 / a)
    expected = np.add.outer(y // side, x // side) % 2
    clear = np.outer(clear_y, clear_x)
    assert clear.mean() > 0.1
    assert ((result > 0.5) == expected)[clear].all()


def test_resizing_is_torch_bicubic_without_antialiasing_and_not_clamped():
    image = torch.randint(0, 256, (2, 3, 60, 80, 3), dtype=torch.uint8)
    made = framing("crop", 60, 80, 56, 14)
    expected = F.interpolate(image.flatten(0, 1).permute(0, 3, 1, 2).float() / 255, size=(42, 56), mode="bicubic")
    found = made.apply(image)
    assert found.shape == (2, 3, 3, 42, 56)
    assert torch.equal(found, expected.reshape(found.shape))
    assert found.min() < 0 and found.max() > 1


def test_padding_is_white_and_masked():
    made = framing("pad", 480, 640, 518, 14)
    result = made.apply(np.zeros((480, 640, 3), np.uint8))
    assert (result[:, :63] == 1).all() and (result[:, 63 + 392 :] == 1).all()
    assert result[:, 63 : 63 + 392].abs().max() < 1e-6
    mask = made.mask(37, 37)
    # 63 pixels are four and a half patches: the cells that are half padding count as padding.
    assert mask.dtype == bool and mask.shape == (37, 37)
    assert mask[5:32].all() and not mask[:5].any() and not mask[32:].any()
    assert made.mask(16, 16).sum() == 12 * 16
    assert framing("pad", 640, 480, 518, 14).mask(37, 37).T.tolist() == mask.tolist()


@pytest.mark.parametrize("source", SOURCES)
def test_a_crop_has_no_padding(source):
    assert framing("crop", *source, 224, 14).mask(7, 5).all()


@pytest.mark.parametrize("name", ["crop", "pad"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_description_is_json_and_reads_back(name, source):
    made = framing(name, *source, 518, 14)
    assert Framing.from_description(json.loads(json.dumps(made.describe()))) == made


def test_arrays_as_decoders_give_them():
    made = framing("crop", 32, 32, 28, 14)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = made.apply(image)
    assert expected.dtype == torch.float32
    image.flags.writeable = False
    assert torch.equal(made.apply(image), expected)
    assert torch.equal(made.apply(np.ascontiguousarray(image[::-1, :, ::-1])[::-1, :, ::-1]), expected)
    assert torch.equal(made.apply(torch.from_numpy(image.copy())), expected)


def _changed(**changes):
    description = framing("pad", 48, 64, 56, 14).describe()
    steps = [dict(step) for step in description["steps"]]
    steps[0].update(changes.pop("resize", {}))
    steps[1].update(changes.pop("pad", {}))
    return {**description, "steps": steps, **changes}


@pytest.mark.parametrize(
    ("description", "says"),
    [
        (_changed(extra=1), "expected the keys preset"),
        (_changed(steps=[{"step": "warp"}]), "expected one of: resize, crop, pad"),
        (_changed(resize={"kernel": "lanczos"}), "expected kernel bicubic"),
        (_changed(resize={"antialias": True}), "expected kernel bicubic"),
        (_changed(resize={"height": "42"}), "found height '42'"),
        (_changed(resize={"sharpen": 1}), "expected the keys step, height"),
        (_changed(pad={"top": -7}), "expected no negative padding"),
        (_changed(pad={"top": 0}), r"size is \[56, 56\], but the steps give \[49, 56\]"),
        (_changed(source_to_teacher=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), "source_to_teacher is"),
        (_changed(source=[48]), "expected a size"),
        (
            _changed(steps=[{"step": "crop", "top": 20, "left": 0, "height": 40, "width": 64}]),
            "window inside the 48x64",
        ),
    ],
)
def test_a_wrong_description_is_refused(description, says):
    with pytest.raises(UserError, match=says):
        Framing.from_description(description)


def test_user_errors():
    with pytest.raises(UserError, match="unknown framing 'crops', expected one of: crop, pad"):
        framing("crops", 480, 640, 518, 14)
    with pytest.raises(UserError, match="multiple of the patch, 14"):
        framing("crop", 480, 640, 520, 14)
    with pytest.raises(UserError, match="at least one pixel"):
        framing("crop", 0, 640, 518, 14)
    made = framing("crop", 480, 640, 518, 14)
    with pytest.raises(UserError, match="480x640 pixels, for which"):
        made.apply(np.zeros((640, 480, 3), np.uint8))
    with pytest.raises(UserError, match=r"expected uint8"):
        made.apply(torch.zeros(480, 640, 3))
