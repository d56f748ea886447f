"""Canvases, token layouts and margin tokens."""

import numpy as np
import pytest
import torch

from serve.output_sizes import SIZES
from tests.training.base_models import nonzero_base, random_embeds
from training.attention import use_plain_attention
from training.canvas import Canvas
from training.curriculum import CANVASES, MARGIN_TOKENS
from training.drawings.scene import FRAME_PX, Item, Scene, scene_strokes
from training.flow_matching import TokenLayout, velocity
from training.latents import STRIDE_PX
from training.square_latents import SIDE

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")


@pytest.mark.parametrize(("grid", "corner"), [((16, 16), (4, 4)), ((32, 32), (12, 12)), ((20, 48), (6, 20))])
def test_layout_starts_with_the_full_square(grid: tuple[int, int], corner: tuple[int, int]) -> None:
    layout = Canvas(grid, margin_tokens=50).layout(np.random.default_rng(0))
    assert layout.kept is not None
    assert len(set(layout.kept.tolist())) == len(layout.kept) == SIDE**2 + 50
    rows, columns = layout.kept[: SIDE**2] // grid[1], layout.kept[: SIDE**2] % grid[1]
    assert torch.equal(rows.view(SIDE, SIDE)[:, 0], corner[0] + torch.arange(SIDE))
    assert torch.equal(columns.view(SIDE, SIDE)[0], corner[1] + torch.arange(SIDE))


def test_margin_multiplicity_sums_to_all_tokens() -> None:
    layout = Canvas((32, 32), margin_tokens=50).layout(np.random.default_rng(0))
    assert layout.multiplicity is not None
    assert (layout.multiplicity[: SIDE**2] == 1).all()
    assert layout.multiplicity.sum() == pytest.approx(32 * 32)
    assert Canvas((32, 32)).layout(np.random.default_rng(0)).multiplicity is None


def test_lay_out_matches_layout() -> None:
    code = torch.arange(SIDE**2 + 1.0)[None, :, None]
    canvas = Canvas((10, 9))
    layout, latents = canvas.layout(np.random.default_rng(0)), canvas.lay_out(code)[0, :, 0]
    full = torch.empty(90)
    assert layout.kept is not None
    full[layout.kept] = latents
    assert torch.equal(full.view(10, 9)[1:9, 0:8].flatten(), torch.arange(SIDE**2 + 0.0))
    assert (full == SIDE**2).sum() == 90 - SIDE**2


def test_multiplicity_approximates_full_margin_attention() -> None:
    """The result would be exact if all margin tokens were equal and had one position."""
    model = nonzero_base()
    use_plain_attention(model)
    torch.manual_seed(0)
    square, blank, times = torch.randn(1, 4, 64), torch.randn(1, 1, 64), torch.rand(1)
    square_tokens = torch.tensor([0, 1, 2, 3])
    full = TokenLayout(8, 8, torch.cat([square_tokens, torch.full((20,), 5)]))
    weighted = TokenLayout(8, 8, torch.cat([square_tokens, torch.full((2,), 5)]), torch.tensor([1.0] * 4 + [10.0] * 2))
    unweighted = TokenLayout(8, 8, weighted.kept)

    def square_velocity(layout: TokenLayout, margin_tokens: int) -> torch.Tensor:
        latents = torch.cat([square, blank.expand(-1, margin_tokens, -1)], 1)
        return velocity(model, latents, times, random_embeds(1), layout)[:, :4]

    expected = square_velocity(full, 20)
    assert (square_velocity(weighted, 2) - expected).abs().max() < 0.2 * (
        square_velocity(unweighted, 2) - expected
    ).abs().max()


@pytest.mark.parametrize("megapixels", SIZES)
def test_things_align_with_tokens_on_any_canvas(megapixels: str) -> None:
    """The square starts at a token boundary, so its latents are the same on any canvas."""
    scene = Scene((Item("thing", "house", "blue"),), None, "white")
    (expected,) = scene_strokes(scene, (FRAME_PX, FRAME_PX), np.random.default_rng(0))
    for size in SIZES[megapixels].values():
        (item,) = scene_strokes(scene, size, np.random.default_rng(0))
        shift = np.array(Canvas.of(size).corner[::-1]) * STRIDE_PX
        np.testing.assert_allclose(item.strokes[0] - shift, expected.strokes[0], atol=1e-6)


def test_canvases_cover_all_service_sizes() -> None:
    served = {(height // STRIDE_PX, width // STRIDE_PX) for table in SIZES.values() for width, height in table.values()}
    assert served <= {canvas.grid for canvas in CANVASES.values() if canvas.margin_tokens == MARGIN_TOKENS}
    assert served <= {canvas.grid for canvas in CANVASES.values() if canvas.margin_tokens is None}
    assert all(side % STRIDE_PX == 0 for table in SIZES.values() for size in table.values() for side in size)
