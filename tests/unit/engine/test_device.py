"""`is_responsive` for working and missing devices."""

import torch

from serve.engine import device


def test_is_responsive_reports_whether_the_device_computes() -> None:
    assert device.is_responsive(torch.device("cpu"))
    assert not device.is_responsive(torch.device("cuda", 17))
