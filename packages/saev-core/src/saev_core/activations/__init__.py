"""Activations: recorded into a store, and read from a store or from the running model.

Three rooms, each importing only those after it: `sources`, `recording`, `store`. They know models and data sets, but nothing
of training.
"""
