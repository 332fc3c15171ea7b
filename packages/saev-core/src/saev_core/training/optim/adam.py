"""`Adam`, fused: one pass over each parameter, its state plain tensors by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adam import adam

from saev_core.training.optim.feature_axis import FeatureAxes, along_features


class Adam:
    """Adam without weight decay. Equivalent to `torch.optim.Adam`, which takes seconds to import the compiler first.

    Source: Kingma and Ba 2014, Adam. https://arxiv.org/abs/1412.6980
    """

    rate: ClassVar[float] = 1.0

    def __init__(
        self, parameters: Iterable[tuple[str, Parameter]], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 6.25e-10
    ) -> None:
        """
        Args:
            eps: as Gao et al. 2024, since gradients of rare features are far below the usual 1e-8.
        """
        self._parameters = dict(parameters)
        self._betas, self._eps = betas, eps
        self._mean = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._square = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._count = {name: torch.zeros((), device=p.device) for name, p in self._parameters.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient."""
        names = [name for name, p in self._parameters.items() if p.grad is not None]
        on = [self._parameters[name] for name in names]
        fused = all(p.device.type in ("cpu", "cuda") for p in on)
        adam(
            list(on),
            [p.grad for p in on if p.grad is not None],
            [self._mean[name] for name in names],
            [self._square[name] for name in names],
            [],
            [self._count[name] for name in names],
            fused=fused,
            foreach=False,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=lr,
            weight_decay=0.0,
            eps=self._eps,
            maximize=False,
        )

    @torch.no_grad()
    def reset_features(self, features: Tensor, axes: FeatureAxes) -> None:
        """Reset the gradient means of these features in every parameter with a feature axis."""
        for name, _, axis in along_features(self._parameters, axes):
            self._mean[name].index_fill_(axis, features, 0)
            self._square[name].index_fill_(axis, features, 0)

    def average_step(self) -> bool:
        return False

    def averaged_weights(self) -> dict[str, Tensor]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The state to save; the tensors themselves, not copies."""
        kinds = {"mean": self._mean, "square": self._square, "count": self._count}
        return {f"{kind}.{name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the state returned by `tensors`."""
        for name, tensor in self.tensors().items():
            tensor.copy_(state[name])
