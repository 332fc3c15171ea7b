"""Code shared by the tasks: probe readouts under edits, the control experiment, pooling, peaks, intervals, results, figures.

It imports none of the tasks.
"""
