"""What the tasks share: read-outs under an edit, the control experiment, pooling, peaks, intervals, results, figures.

It knows none of the tasks.
"""
