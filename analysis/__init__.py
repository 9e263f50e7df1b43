"""Analysis: bounds, Lipschitz constants, radii, attacks, certified metrics, figures and reports."""
