"""Training: many SAEs on one pass over a source, each with its own optimiser and schedule, resumable to the same bits.

Import `train`. It knows sources and SAEs, and nothing of evaluation: what measures SAEs during training is passed in.
"""
