"""Sparse autoencoders: the base class, codes, the normaliser, kernels, the built-in variants and checkpoints.

Import `SAE`, `SAEConfig`, `make_sae`, `Codes`, `Norm`, `Checkpoint`. Works on vectors, independent of images, stores and
the training loop.
"""
