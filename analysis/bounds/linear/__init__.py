"""Linear bounds: rows of coefficients, propagated backwards (CROWN)."""
