"""`Average`: an exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from saev_core.training.optim.feature_axis import FeatureAxes, along_features


class Average:
    """m_t = sum_s d^(t-s) w_s / sum_s d^(t-s) over the weights w_1 ... w_t after each step: not biased by an initial value."""

    def __init__(self, parameters: Iterable[tuple[str, Parameter]], decay: float) -> None:
        """
        Args:
            decay: d, in (0, 1); 0.999 averages over about the last 1,000 steps.
        """
        self._parameters, self._decay = dict(parameters), decay
        self._mean = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._count = torch.zeros((), dtype=torch.long)

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights of one more step to the average."""
        self._count += 1
        share = (1 - self._decay) / (1 - self._decay ** int(self._count))
        for name, p in self._parameters.items():
            self._mean[name].lerp_(p, share)

    @torch.no_grad()
    def reset_features(self, features: Tensor, axes: FeatureAxes) -> None:
        """Restart the average for features that were reinitialised."""
        for name, p, axis in along_features(self._parameters, axes):
            self._mean[name].index_copy_(axis, features, p.index_select(axis, features))

    def averaged_weights(self) -> dict[str, Tensor]:
        """Averaged weights by name; empty before the first step."""
        return dict(self._mean) if int(self._count) else {}

    def tensors(self) -> dict[str, Tensor]:
        """The state to save; the tensors themselves, not copies."""
        return {"count": self._count, **{f"mean.{name}": tensor for name, tensor in self._mean.items()}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the state returned by `tensors`."""
        for name, tensor in self.tensors().items():
            tensor.copy_(state[name])
