"""Sound bounds of a network's logits, scores and gradients over a ball of images."""
