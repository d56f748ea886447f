"""Rollouts and their timesteps."""

import torch

from training.flow_matching import schedule, shift
from training.student_rollout import Rollout, even_timesteps, varied_timesteps


def test_rollout_with_true_velocity_reaches_image() -> None:
    noise, image = torch.randn(3, 4, 64), torch.randn(3, 4, 64)
    rollout, intervals = Rollout(noise, varied_timesteps(3, 5, 2.0)), []
    while not rollout.finished:
        intervals.append(rollout.interval)
        rollout.advance(noise - image)
    assert len(intervals) == 5
    last = intervals[-1]
    final = last.latents + (last.end - last.begin)[:, None, None] * (noise - image)
    torch.testing.assert_close(final, image)
    assert torch.equal(last.end, torch.zeros(3))


def test_interval_begins_at_previous_end() -> None:
    rollout = Rollout(torch.zeros(2, 1, 64), torch.tensor([[1.0, 0.6, 0.0], [0.5, 0.4, 0.2]]))
    rollout.advance(torch.ones(2, 1, 64))
    torch.testing.assert_close(rollout.interval.latents[:, 0, 0], torch.tensor([-0.4, -0.1]))
    assert rollout.interval.begin.tolist() == torch.tensor([0.6, 0.4]).tolist()


def test_rollout_detaches_previous_steps() -> None:
    rollout, velocity = Rollout(torch.zeros(1, 1, 64), even_timesteps(1, 2)), torch.ones(1, 1, 64, requires_grad=True)
    rollout.advance(velocity)
    assert not rollout.interval.latents.requires_grad


def test_varied_timesteps_differ_within_batch() -> None:
    torch.manual_seed(0)
    timesteps = varied_timesteps(100, 8, shift(256))
    assert (timesteps.diff(dim=1) < 0).all()
    assert (timesteps[:, 0] == 1).all()
    assert (timesteps[:, -1] == 0).all()
    assert timesteps[:, 4].min() < schedule(8, shift(256))[4] < timesteps[:, 4].max()
    assert timesteps[:, 4].std() > 0.05
    assert torch.equal(even_timesteps(2, 4)[1], schedule(4, 1.0))
