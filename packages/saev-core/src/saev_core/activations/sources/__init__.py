"""Sources: the vectors an SAE is trained and evaluated on, shuffled or in order, from a store or computed by the model.

Import `ActivationSource`, `StoreSource`, `LiveSource`. Independent of SAEs.
"""
