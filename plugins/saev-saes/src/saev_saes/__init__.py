"""Variants of sparse autoencoders in addition to the core's `relu` and `topk`, one file each."""
