"""A norm that counts pixels says of a piece what a plain one says of the whole."""

import torch

from training.norms import counting, make_countable


def countable(groups: int = 2, channels: int = 4) -> torch.nn.Sequential:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(groups, channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    model = torch.nn.Sequential(norm)
    make_countable(model)
    return model


def test_until_told_otherwise_it_is_the_plain_norm() -> None:
    model, given = countable(), torch.randn(2, 4, 6, 6)
    plain = torch.nn.GroupNorm(2, 4)
    plain.load_state_dict(model[0].state_dict())
    torch.testing.assert_close(model(given), plain(given))
    with counting(model, torch.ones(6, 6)):
        torch.testing.assert_close(model(given), plain(given))


def test_a_column_that_counts_often_stands_for_as_many() -> None:
    model, drawing, blank = countable(), torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 1)
    whole = model(torch.cat([drawing, blank.expand(-1, -1, -1, 50)], 3))
    counts = torch.ones(6, 7)
    counts[:, 6] = 50
    with counting(model, counts):
        piece = model(torch.cat([drawing, blank], 3))
    torch.testing.assert_close(piece, whole[..., :7])
    assert not torch.allclose(model(torch.cat([drawing, blank], 3)), piece, atol=0.1), "told no more, it forgets"


def test_counts_of_a_picture_hold_for_what_is_smaller_by_some_strides() -> None:
    model, given = countable(), torch.randn(1, 4, 4, 4)
    coarse = torch.rand(4, 4)
    with counting(model, coarse):
        wanted = model(given)
    with counting(model, coarse.repeat_interleave(8, 0).repeat_interleave(8, 1)):
        torch.testing.assert_close(model(given), wanted)


def test_what_comes_in_half_precision_goes_out_so() -> None:
    assert countable()(torch.randn(1, 4, 2, 2).bfloat16()).dtype == torch.bfloat16
