"""`pick_device`: the torch device to compute on."""

from __future__ import annotations

import torch

from saev_core.errors import DeviceError


def pick_device(device: str) -> torch.device:
    """The device of that name; `auto` picks cuda, mps or cpu, the first that is available.

    Raises:
        DeviceError: the requested device is not available.
    """
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise DeviceError(f"--device {device}: not available here ({why}); use --device auto or cpu.") from None
    return wanted
