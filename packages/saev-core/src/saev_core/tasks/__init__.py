"""Tasks: the base class of task plugins, the context passed to verbs, linear probes, and the interface of viewer tabs.

Import `Task`, `verb`, `TaskContext`, `Probe`. Depends on runs and their artifacts, not on any task.
"""
