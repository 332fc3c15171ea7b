"""Plugins of this repository's packages. Written by `make fix` from their pyproject.toml; edit those."""

from __future__ import annotations

KNOWN: dict[str, dict[str, str]] = {
    "model": {
        "clip": "saev-models",
        "siglip": "saev-models",
        "dinov2": "saev-models",
        "moondream2": "saev-models",
        "timm": "saev-models",
        "dinov2-focus": "saev-dinov2-focus",
    },
    "dataset": {
        "ade20k": "saev-datasets",
        "caltech101": "saev-datasets",
        "cifar10": "saev-datasets",
        "cifar100": "saev-datasets",
        "cub200": "saev-datasets",
        "fashion-mnist": "saev-datasets",
        "flowers102": "saev-datasets",
        "huggingface": "saev-datasets",
        "image-folder": "saev-datasets",
        "imagenet": "saev-datasets",
        "imagenette": "saev-datasets",
        "photos": "saev-datasets",
    },
    "sae": {
        "archetypal": "saev-saes",
        "kmeans": "saev-saes",
        "pca": "saev-saes",
        "nmf": "saev-saes",
        "mp": "saev-saes",
        "batchtopk": "saev-saes",
        "jumprelu": "saev-saes",
        "gated": "saev-saes",
        "matryoshka": "saev-saes",
        "p-anneal": "saev-saes",
        "transcoder": "saev-saes",
        "crosscoder": "saev-saes",
    },
    "task": {
        "classification": "saev-tasks",
        "semseg": "saev-tasks",
        "semprobe": "saev-tasks",
        "probe1d": "saev-tasks",
        "fidelity": "saev-tasks",
    },
    "tracker": {
        "tensorboard": "saev-tensorboard",
        "wandb": "saev-wandb",
    },
    "viewer": {
        "viz": "saev-viz",
    },
}
"""Kind -> name -> the distribution to install for it."""
OUR_DISTS = (
    "saev-core",
    "saev-datasets",
    "saev-dinov2-focus",
    "saev-models",
    "saev-saes",
    "saev-tasks",
    "saev-tensorboard",
    "saev-viz",
    "saev-wandb",
)
"""Distributions of this repository that bring plugins."""
