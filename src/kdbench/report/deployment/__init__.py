"""From a trained network to a device: what compression costs in accuracy, and what it saves."""
