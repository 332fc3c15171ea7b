"""Interventions: edit features inside the running model, and run the model downstream of the edit.

Import `Edit`, `apply_edits`, `steering`, `Downstream`. Depends on models and checkpoints; takes only numbers from the feature index.
"""
