"""Weighted norms compute the statistics of a full image from a crop of it."""

import torch

from training.group_norms import use_weighted_norms, weighted_statistics


def weighted_norm(groups: int = 2, channels: int = 4) -> torch.nn.Sequential:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(groups, channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    model = torch.nn.Sequential(norm)
    use_weighted_norms(model)
    return model


def test_unweighted_norm_matches_group_norm() -> None:
    model, features = weighted_norm(), torch.randn(2, 4, 6, 6)
    plain = torch.nn.GroupNorm(2, 4)
    plain.load_state_dict(model[0].state_dict())
    torch.testing.assert_close(model(features), plain(features))
    with weighted_statistics(model, torch.ones(6, 6)):
        torch.testing.assert_close(model(features), plain(features))


def test_weighted_column_equals_repeated_columns() -> None:
    model, features, blank_column = weighted_norm(), torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 1)
    full = model(torch.cat([features, blank_column.expand(-1, -1, -1, 50)], 3))
    pixel_weights = torch.ones(6, 7)
    pixel_weights[:, 6] = 50
    with weighted_statistics(model, pixel_weights):
        crop = model(torch.cat([features, blank_column], 3))
    torch.testing.assert_close(crop, full[..., :7])
    assert not torch.allclose(model(torch.cat([features, blank_column], 3)), crop, atol=0.1), (
        "pixel weights must have no effect after the block"
    )


def test_pixel_weights_are_averaged_to_feature_size() -> None:
    model, features = weighted_norm(), torch.randn(1, 4, 4, 4)
    coarse = torch.rand(4, 4)
    with weighted_statistics(model, coarse):
        expected = model(features)
    with weighted_statistics(model, coarse.repeat_interleave(8, 0).repeat_interleave(8, 1)):
        torch.testing.assert_close(model(features), expected)


def test_norm_keeps_dtype() -> None:
    assert weighted_norm()(torch.randn(1, 4, 2, 2).bfloat16()).dtype == torch.bfloat16
