"""Teachers: stored runs, the live network, and the cache of their logits."""
