"""Networks of known Lipschitz constant: proven norm bounds, layers, whole-network bounds, training.

A constant that a certificate rests on is an `UpperBound`, computed from the very weights that run. What power iteration
gives is an `Estimate`, good for training only.
"""
