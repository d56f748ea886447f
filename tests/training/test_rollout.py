"""A journey goes from noise to a picture by the steps that it is told."""

import torch

from training.flow import schedule, shift
from training.rollout import Journey, even_marks, warped_marks


def test_it_arrives_where_a_true_velocity_leads() -> None:
    noise, picture = torch.randn(3, 4, 64), torch.randn(3, 4, 64)
    journey, stretches = Journey(noise, warped_marks(3, 5, 2.0)), []
    while not journey.ended:
        stretches.append(journey.stretch)
        journey.go_on(noise - picture)
    assert len(stretches) == 5
    last = stretches[-1]
    arrived = last.latents + (last.end - last.begin)[:, None, None] * (noise - picture)
    torch.testing.assert_close(arrived, picture)
    assert torch.equal(last.end, torch.zeros(3))


def test_each_stretch_begins_where_the_last_one_led() -> None:
    journey = Journey(torch.zeros(2, 1, 64), torch.tensor([[1.0, 0.6, 0.0], [0.5, 0.4, 0.2]]))
    journey.go_on(torch.ones(2, 1, 64))
    torch.testing.assert_close(journey.stretch.latents[:, 0, 0], torch.tensor([-0.4, -0.1]))
    assert journey.stretch.begin.tolist() == torch.tensor([0.6, 0.4]).tolist()


def test_nothing_is_learned_through_the_steps_before() -> None:
    journey, velocity = Journey(torch.zeros(1, 1, 64), even_marks(1, 2)), torch.ones(1, 1, 64, requires_grad=True)
    journey.go_on(velocity)
    assert not journey.stretch.latents.requires_grad


def test_pictures_of_a_batch_are_at_many_times_at_once() -> None:
    torch.manual_seed(0)
    marks = warped_marks(100, 8, shift(256))
    assert (marks.diff(dim=1) < 0).all()
    assert (marks[:, 0] == 1).all()
    assert (marks[:, -1] == 0).all()
    assert marks[:, 4].min() < schedule(8, shift(256))[4] < marks[:, 4].max()
    assert marks[:, 4].std() > 0.05
    assert torch.equal(even_marks(2, 4)[1], schedule(4, 1.0))
