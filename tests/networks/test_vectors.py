"""Encoders of vectors by name: their shapes, and that weights alone tell which one they fill."""

import pytest
import torch

from networks.vectors import NAMES, vector_encoder, vector_encoder_like


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("name", "dim"), [("linear", 5), ("mlp", 9), ("residual", 5)])
def test_an_encoder_gives_as_many_numbers_as_it_says_and_is_rebuilt_from_its_weights(name, dim, batch_norm):
    x = torch.randn(4, 5)
    net = vector_encoder(name, 5, 9, batch_norm).eval()
    assert net.dim == dim and net(x).shape == (4, dim)
    again = vector_encoder_like(name, net.state_dict(), 5).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


def test_the_linear_encoder_and_an_untrained_residual_one_are_the_identity():
    x = torch.randn(4, 5)
    assert torch.equal(vector_encoder("linear", 5)(x), x)
    assert torch.equal(vector_encoder("residual", 5)(x), x)


def test_the_mlp_is_a_linear_layer_with_relu_of_as_many_units_as_dimensions_by_default():
    x, net = torch.randn(4, 5), vector_encoder("mlp", 5)
    ((_, weight), (_, bias)) = net.named_parameters()
    assert torch.allclose(net(x), (x @ weight.T + bias).clamp(min=0))


def test_an_unknown_name_is_a_value_error_with_those_that_there_are():
    with pytest.raises(ValueError, match=f"choose one of {', '.join(NAMES)}"):
        vector_encoder("mpl", 5)
