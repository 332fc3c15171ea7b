"""Sources: vectors to train and evaluate SAEs on, shuffled or in order, from a store or from the running model.

Import `ActivationSource`, `StoreSource`, `LiveSource`. Independent of SAEs.
"""
