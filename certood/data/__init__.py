"""Image sets by name."""
