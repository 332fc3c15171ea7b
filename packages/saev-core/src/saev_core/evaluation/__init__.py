"""Evaluation: held-out metrics, recovery of known truth, Pareto fronts, and how well seeds agree.

Import `evaluate`, `Heldout`, `recover`, `pareto`, `consensus`. To add a metric to the evaluation card, extend `measure.Tally`. It knows
nothing of training.
"""
