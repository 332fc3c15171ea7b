"""Recording: run images through a model into a store; with a cost estimate, resumable, in parallel parts.

Import `record`, `plan`. Independent of the code that reads the store.
"""
