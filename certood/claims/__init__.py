"""Claims that others can check: properties of exported networks as VNN-LIB, and certificates with a checker of their own.

Nothing here imports `certood.analysis`: whoever checks a claim need not trust what made it.
"""
