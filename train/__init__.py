"""Training: objectives, gradient penalty, outlier samplers, recipes and the training loop."""
