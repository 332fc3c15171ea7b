"""Sparse autoencoders: the base class, codes, the normaliser, kernels, the built-in variants and checkpoints.

Import `SAE`, `SAEConfig`, `make_sae`, `Codes`, `Norm`, `Checkpoint`. It takes vectors; it knows nothing of images, stores, or how
an SAE is trained over many steps.
"""
