"""Training: many SAEs on one pass over a source, each with its own optimiser and schedule, resumable bit for bit.

Import `train`. Depends on sources and SAEs, not on evaluation: the evaluator used during training is passed in.
"""
