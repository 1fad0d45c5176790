"""The U-Net: size and cost of the recipe, frozen blocks that stay frozen, averages that cover everything."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import model_unet
from model_unet import ENCODER_BLOCKS, NormReLU, UNet, ema_update, freeze


def test_size_and_cost_of_the_recipe():
    with torch.device("meta"):
        model = UNet()
        with FlopCounterMode(display=False) as counter:
            out = model(torch.empty(1, 1, 256, 256))
    assert out.shape == (1, 1, 256, 256)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 31.45
    assert round(counter.get_total_flops() / 1e9, 1) == 120.9


def test_width_scales():
    count = [sum(p.numel() for p in UNet(c).parameters()) for c in (4, 8)]
    assert 3.9 < count[1] / count[0] < 4.0


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (64, 96)])
def test_output_has_the_size_of_the_input(shape):
    assert UNet(2)(torch.zeros(2, 1, *shape)).shape == (2, 1, *shape)


@pytest.mark.parametrize("shape", [(16, 16), (40, 64), (64, 33)])
def test_sizes_that_cannot_be_pooled_are_an_error(shape):
    with pytest.raises(ValueError, match=f"input is {shape[0]}×{shape[1]}"):
        UNet(2)(torch.zeros(1, 1, *shape))


def test_downsampling_works_on_block_means_and_gives_logits_of_the_input_size():
    torch.manual_seed(0)
    model = UNet(4, 2).eval()
    x = torch.rand(1, 1, 96, 64)
    shuffled = (
        x.unfold(2, 2, 2).unfold(3, 2, 2).flip(-1, -2).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    )
    assert not torch.equal(x, shuffled)
    torch.testing.assert_close(model(shuffled), model(x))  # only the means of 2×2 blocks count
    plain = UNet(4).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "downsample"})
    small = plain(torch.nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(
        model(x), torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    )
    again = UNet.from_weights(model.state_dict())  # the factor travels with the weights
    assert again.factor == 2
    torch.testing.assert_close(again(x), model(x))
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.zeros(1, 1, 48, 64))
    with FlopCounterMode(display=False) as counts:
        model(x)
    half = counts.get_total_flops()
    with FlopCounterMode(display=False) as counts:
        plain(x)
    assert counts.get_total_flops() == 4 * half


def test_reduced_images_pass_the_network_as_they_are():
    torch.manual_seed(0)
    model, x = UNet(2, 3).eval(), torch.rand(2, 1, 96, 144)
    small = model(torch.nn.functional.avg_pool2d(x, 3), reduced=True)
    assert small.shape == (2, 1, 32, 48)
    torch.testing.assert_close(
        model(x), torch.nn.functional.interpolate(small, scale_factor=3, mode="bilinear")
    )
    with pytest.raises(ValueError, match="input is 24×48; sides must be multiples of 16"):
        model(torch.zeros(1, 1, 24, 48), reduced=True)
    plain = UNet(2).eval()
    assert torch.equal(plain(x[..., :32, :32], reduced=True), plain(x[..., :32, :32]))


def test_grey_values_are_not_rounded_before_they_are_seen_in_half_precision():
    grey = torch.randint(128, 256, (2, 1, 32, 32)) / 255
    assert (255 * (grey.bfloat16().float() - grey)).abs().max() > 0.4  # of a grey level
    torch.manual_seed(0)
    first = UNet(8).down1[0]
    exact = first(grey)
    with torch.autocast("cpu", torch.bfloat16):
        seen = first(grey)
        rounded = torch.nn.functional.conv2d(grey, first.weight, padding=1)
    assert (
        seen.dtype == rounded.dtype == torch.bfloat16
    )  # what follows is computed in half precision
    assert torch.equal(seen, exact.bfloat16())
    assert not torch.equal(rounded, exact.bfloat16())

    target = torch.randn_like(exact)
    gradients = {}
    for name, output in (("exact", exact), ("seen", seen), ("rounded", rounded)):
        (gradients[name],) = torch.autograd.grad((output.float() * target).sum(), first.weight)
    errors = {
        name: float((gradients[name] - gradients["exact"]).norm()) for name in ("seen", "rounded")
    }
    assert errors["seen"] < errors["rounded"]


def test_both_halves_of_a_join_are_in_the_precision_of_the_skip():
    coarse, skip = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 8, 8).bfloat16()
    joined = model_unet._upsample_and_concatenate(coarse, skip)
    assert joined.dtype == torch.bfloat16
    assert joined.shape == (1, 5, 8, 8)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = UNet(4)
    model(torch.rand(1, 1, 64, 64)).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_frozen_blocks_stay_in_eval_mode_and_get_no_gradient():
    model = UNet(2)
    freeze(model, ("down1", "down3"))
    model.train()
    assert not model.down1.training
    assert not model.down3[2].training
    assert model.down2.training
    model(torch.rand(1, 1, 32, 32)).mean().backward()
    assert all(p.grad is None for p in model.down1.parameters())
    assert all(p.grad is not None for p in model.down2.parameters())


def test_unknown_block():
    with pytest.raises(ValueError, match="no encoder block 'up1'"):
        freeze(UNet(2), ("up1",))
    freeze(UNet(2), ENCODER_BLOCKS)


def test_from_weights():
    model = UNet(3)
    same = UNet.from_weights(model.state_dict())
    assert not same.training
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="not the weights of this U-Net"):
        UNet.from_weights({"conv.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="not the weights of this U-Net"):
        UNet.from_weights({**model.state_dict(), "head.weight": torch.zeros(2, 2)})


def test_ema_equals_its_closed_form_and_covers_buffers():
    torch.manual_seed(0)

    class WithBuffers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)
            self.norm = torch.nn.BatchNorm1d(2)

    teacher = WithBuffers()
    start, alpha, steps = copy.deepcopy(teacher.state_dict()), 0.9, 12
    students = []
    for n in range(steps):
        student = WithBuffers()
        student.norm.running_mean.fill_(n)
        student.norm.num_batches_tracked.fill_(7 + n)
        students.append(student.state_dict())
        ema_update(teacher, student, alpha)
    for name, value in teacher.state_dict().items():
        if not value.is_floating_point():
            assert value == 7 + steps - 1
            continue
        closed = alpha**steps * start[name] + sum(
            (1 - alpha) * alpha ** (steps - 1 - n) * s[name] for n, s in enumerate(students)
        )
        torch.testing.assert_close(value, closed)


def test_student_batch_may_be_shared_because_images_do_not_mix():
    torch.manual_seed(0)
    model = UNet(2).train()
    a, b = torch.rand(2, 1, 32, 32), torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(model(torch.cat([a, b])), torch.cat([model(a), model(b)]))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_normalisation_is_that_of_pytorch_whatever_way_it_takes(gradient, offset):
    """With an offset as grey values have one: a sum of squares would lose what is left of the variance."""
    torch.manual_seed(0)
    reference = torch.nn.Sequential(torch.nn.InstanceNorm2d(3), torch.nn.ReLU())
    x = (offset + torch.randn(2, 3, 160, 128)).requires_grad_(gradient)
    exact = x.detach().double().requires_grad_(gradient)
    expected = reference(exact)
    result = NormReLU()(x)
    torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=0)
    if gradient:
        weight = torch.randn(result.shape)
        (result * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-4, rtol=1e-3)
    else:
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_model_predicts_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    model, x = UNet(4), torch.rand(2, 1, 64, 48)
    with torch.no_grad():
        without = model(x)
    torch.testing.assert_close(without, model(x), atol=1e-4, rtol=0)
    freeze(model, ("down1", "down2"))  # the part without gradients and the part with them meet
    frozen = model(x)
    torch.testing.assert_close(without, frozen, atol=1e-4, rtol=0)
    frozen.sum().backward()
