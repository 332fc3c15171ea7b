"""Sources: the vectors that an SAE is trained and measured on, shuffled or in order, from a store or from the running model.

Import `ActivationSource`, `StoreSource`, `LiveSource`. It knows nothing of SAEs.
"""
