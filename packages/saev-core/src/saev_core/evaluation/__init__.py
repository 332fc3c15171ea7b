"""Evaluation: held-out metrics, recovery of ground truth, Pareto fronts, and seed agreement.

Import `evaluate`, `Heldout`, `recover`, `pareto`, `consensus`. To add a metric to the evaluation card, extend `measure.Tally`.
Independent of training.
"""
