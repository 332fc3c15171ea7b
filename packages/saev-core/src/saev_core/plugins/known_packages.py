"""TODO."""

from __future__ import annotations

_OURS = {
    "saev-models": {"model": ["clip", "siglip", "dinov2", "moondream2", "timm"]},
    "saev-dinov2-focus": {"model": ["dinov2-focus"]},
    "saev-datasets": {
        "dataset": [
            "imagenet",
            "imagenette",
            "huggingface",
            "image-folder",
            "ade20k",
            "cifar10",
            "cifar100",
            "fashion-mnist",
            "flowers102",
            "caltech101",
            "cub200",
            "photos",
        ]
    },
    "saev-saes": {
        "sae": [
            "batchtopk",
            "jumprelu",
            "gated",
            "matryoshka",
            "p-anneal",
            "archetypal",
            "mp",
            "kmeans",
            "pca",
            "nmf",
        ]
    },
    "saev-tasks": {"task": ["classification", "semseg", "semprobe", "probe1d", "fidelity"]},
    "saev-viz": {"viewer": ["report", "pareto"]},
}
"""What to pip install for a name of ours that is missing."""
OUR_DISTS = ("saev-core", *_OURS)
"""Distributions of this repository whose plugins everybody is told of."""
