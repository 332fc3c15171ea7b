"""Tasks: the base class of task plugins, what a verb works with, probes, and the contract of viewer tabs.

Import `Task`, `verb`, `TaskContext`, `Probe`. It knows runs and their artifacts, and none of the tasks themselves.
"""
