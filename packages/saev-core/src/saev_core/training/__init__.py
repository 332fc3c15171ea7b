"""Training: train many SAEs in one pass over a source, each with its own optimiser and schedule; resumes bit-exactly.

Import `train`. Depends on sources and SAEs, not on evaluation: held-out measurements are passed in.
"""
