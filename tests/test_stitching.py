"""Sliding windows: every pixel covered, blended as MONAI blends, and the same however windows share a forward pass."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import utils
from model_unet import UNet
from runtime.messages import InputError

CPU = torch.device("cpu")


class Identity(torch.nn.Module):
    """Logits whose sigmoid is the input."""

    def forward(self, x):
        return torch.logit(x.clamp(1e-6, 1 - 1e-6))


class Ramp(torch.nn.Module):
    """Position in the window: shows how windows are laid and blended."""

    def forward(self, x):
        side = torch.linspace(-2, 2, x.shape[-1])
        return (side[:, None] + 2 * side[None]).expand_as(x) + x


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([16, 32]),
    st.sampled_from([0.0, 0.25, 0.5, 0.8]),
    st.booleans(),
)
def test_identity_model_gives_the_image_back_at_any_size(height, width, patch, overlap, tta):
    image = (
        np.random.default_rng(height * 100 + width)
        .integers(0, 256, (height, width))
        .astype(np.uint8)
    )
    probability = utils.predict_image(
        Identity(), image, CPU, utils.SlidingWindow(patch, overlap, tta)
    )
    assert probability.shape == image.shape
    np.testing.assert_allclose(probability, image / 255, atol=2e-5)


@given(st.integers(1, 3000), st.integers(1, 300), st.floats(0, 0.95))
def test_windows_cover_every_pixel_and_stay_inside(length, window, overlap):
    window = min(window, length)
    starts = utils.window_starts(length, window, overlap)
    covered = np.zeros(length, int)
    for start in starts:
        assert 0 <= start <= length - window
        covered[start : start + window] += 1
    assert covered.min() >= 1
    assert starts == sorted(set(starts))


def test_last_window_ends_at_the_edge():
    assert utils.window_starts(800, 256, 0.5) == [0, 128, 256, 384, 512, 544]  # 800 = 544 + 256
    assert utils.window_starts(768, 256, 0.5) == [0, 128, 256, 384, 512]
    assert utils.window_starts(256, 256, 0.5) == [0]


@pytest.mark.parametrize("size", [(64, 64), (70, 101), (33, 95)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_agrees_with_monai(size, overlap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own imports warn
        from monai.inferers import sliding_window_inference
    image = np.random.default_rng(3).integers(0, 256, size).astype(np.uint8)
    model = Ramp()
    expected = sliding_window_inference(
        torch.from_numpy(image)[None, None].float() / 255,
        (32, 32),
        4,
        lambda x: model(x).sigmoid(),
        overlap=overlap,
        mode="gaussian",
        sigma_scale=0.125,
    )[0, 0].numpy()
    np.testing.assert_allclose(
        utils.predict_image(model, image, CPU, utils.SlidingWindow(32, overlap)),
        expected,
        atol=2e-5,
    )


def test_test_time_augmentation_is_the_mean_over_the_eight_symmetries():
    torch.manual_seed(0)
    model = UNet(2).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32)).astype(np.uint8)
    views = []
    for turns in range(4):
        for flip in (False, True):
            view = np.rot90(image[0, :, ::-1] if flip else image[0], turns)
            back = np.rot90(utils.probability_of(model, view[None], CPU)[0], -turns)
            views.append(back[:, ::-1] if flip else back)
    result = utils.probability_of(model, image, CPU, tta=True)[0]
    np.testing.assert_allclose(result, np.mean(views, axis=0), atol=1e-6)


@pytest.mark.parametrize("tta", [False, True])
def test_a_model_whose_output_is_not_a_number_predicts_nothing(tta):
    with pytest.raises(InputError, match="output is not a number; train again with a lower --lr"):
        utils.probability_of(lambda x: x / 0, np.zeros((1, 16, 16), np.uint8), CPU, tta)


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_windows_of_consecutive_images_share_forward_passes(monkeypatch, batch):
    monkeypatch.setattr(utils, "windows_at_once", lambda *_: batch)
    torch.manual_seed(0)
    model, sizes = UNet(2).eval(), []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    images = [
        np.random.default_rng(i).integers(0, 256, size).astype(np.uint8)
        for i, size in enumerate([(64, 64), (32, 32), (20, 70), (32, 32), (48, 33)])
    ]
    together = list(utils.predict_images(model, images, CPU, utils.SlidingWindow(32)))
    windows = sum(sizes)
    assert sizes == [batch] * (windows // batch) + [windows % batch] * (windows % batch > 0)
    for image, probability in zip(images, together, strict=True):
        np.testing.assert_allclose(
            probability, utils.predict_image(model, image, CPU, utils.SlidingWindow(32)), atol=1e-5
        )


@pytest.mark.parametrize("batch", [1, 4])
def test_a_stream_is_never_read_further_than_needed(monkeypatch, batch):
    monkeypatch.setattr(utils, "windows_at_once", lambda *_: batch)
    read = []

    def images():
        for i in range(50):
            read.append(i)
            yield np.zeros((32, 32), np.uint8)

    for count, _ in enumerate(
        utils.predict_images(Identity(), images(), CPU, utils.SlidingWindow(32))
    ):
        assert len(read) <= count + batch + 1
    assert len(read) == 50


def test_gradients_are_on_between_two_images_and_where_images_come_from():
    def images():
        for _ in range(3):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            yield np.zeros((32, 32), np.uint8)

    for _ in utils.predict_images(Identity(), images(), CPU, utils.SlidingWindow(32)):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_an_image_that_cannot_be_read_does_not_cost_those_before_it(monkeypatch, batch):
    monkeypatch.setattr(utils, "windows_at_once", lambda *_: batch)

    def images():
        for value in range(5):
            yield np.full((32, 40), 10 * value, np.uint8)
        raise InputError("slice 5: unreadable")

    stream, result = utils.predict_images(Identity(), images(), CPU, utils.SlidingWindow(32)), []
    with pytest.raises(InputError, match="slice 5: unreadable"):
        result.extend(probability.mean() for probability in stream)
    np.testing.assert_allclose(result, np.arange(5) * 10 / 255, atol=1e-6)


def test_a_device_that_is_too_small_gets_fewer_windows_and_that_is_remembered(monkeypatch):
    monkeypatch.setattr(utils, "_fitting", {})
    sizes = []

    def model(x):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room")
        return torch.logit(x.clamp(1e-6, 1 - 1e-6))

    windows = torch.randint(0, 256, (7, 16, 16), dtype=torch.uint8)
    for expected in ([7, 4, 2, 2, 2, 1], [2, 2, 2, 1]):
        sizes.clear()
        result = utils.moments_that_fit(model, windows)[:, 0]
        torch.testing.assert_close(result, windows / 255, atol=1e-5, rtol=0)
        assert sizes == expected
    with pytest.raises(torch.OutOfMemoryError):
        utils.moments_that_fit(lambda x: model(torch.cat([x] * 3)), windows)


def test_an_error_that_is_not_about_memory_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(utils, "_fitting", {})
    sizes = []

    def model(x):
        sizes.append(len(x))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        utils.moments_that_fit(model, torch.zeros(4, 16, 16, dtype=torch.uint8))
    assert sizes == [4]


def test_windows_of_a_pass_fill_the_device():
    gpu = torch.device("cuda")
    assert utils.windows_at_once(UNet(2), 256, CPU) == 4
    assert utils.windows_at_once(UNet(2), 256, gpu) == 32
    assert utils.windows_at_once(UNet(2, 4), 768, gpu) == 56  # each costs as much as 192² px
    assert utils.windows_at_once(UNet(2), 4096, gpu) == 1
