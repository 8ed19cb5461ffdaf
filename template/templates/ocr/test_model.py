"""The reader has the shapes and the size that it should, sees both directions, and every weight learns."""

import numpy as np
import torch

from {{ cookiecutter.package_name }} import baseline, data, model


def test_columns_become_frames() -> None:
    assert model.LineReader(num_classes=7)(torch.randn(3, 1, 8, 20)).shape == (3, 20, 7)


def test_number_of_parameters() -> None:
    # By hand: two convolutions, each with BatchNorm; the LSTM with four gates; the head.
    convolutions = 9 * (1 * 16 + 16 * 16) + 2 * 2 * 16
    lstm = 2 * 4 * 48 * (4 * 16 + 48 + 2)
    expected = convolutions + lstm + (96 * 11 + 11)
    assert sum(parameter.numel() for parameter in model.LineReader().parameters()) == expected


def test_every_parameter_gets_a_gradient() -> None:
    network = model.LineReader()
    network(torch.randn(8, 1, 8, 12)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )


def test_a_frame_sees_columns_on_both_sides() -> None:
    images = torch.rand(1, 1, 8, 12, requires_grad=True)
    model.LineReader().eval()(images)[0, 6].sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum(dim=(0, 1, 2)) > 0).all()


def test_the_baseline_cuts_where_the_digits_are() -> None:
    strings, _ = data.compose(np.ones((1, 1, 8, 8), np.float32), np.array([0]), 50, seed=0)
    for string in strings:
        assert baseline.cut(string).sum() >= 0.8 * string.sum()
