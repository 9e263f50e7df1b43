"""Classifiers with normalisation inside."""
