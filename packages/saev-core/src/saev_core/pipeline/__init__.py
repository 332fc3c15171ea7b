"""The pipeline: the stages of a run in order, each skipped if its output is up to date.

Import `Pipeline`. One file per stage: record, train, evaluate, index, names, report. Depends on every package but `cli`.
"""
