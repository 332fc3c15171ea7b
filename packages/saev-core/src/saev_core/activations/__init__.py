"""Activations: recorded into a store, and read from a store or from the running model.

Three packages, each importing only those after it: `sources`, `recording`, `store`. They depend on models and data sets, not
on training.
"""
