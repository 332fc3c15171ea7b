"""Variants of sparse autoencoders beside the core's `relu` and `topk`, one file each."""
