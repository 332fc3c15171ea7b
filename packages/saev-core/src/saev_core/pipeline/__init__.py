"""The pipeline: the stages of a run in their order, each skipped where what it makes is up to date.

Import `Pipeline`. One file a stage: record, train, evaluate, index, names, report. It knows every room below and no command line.
"""
