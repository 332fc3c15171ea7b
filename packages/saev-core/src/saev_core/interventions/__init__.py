"""Interventions: edits of features inside the running model, and what they change downstream.

Import `Edit`, `apply_edits`, `steering`, `Downstream`. It knows models and checkpoints; of the feature index it takes numbers only.
"""
