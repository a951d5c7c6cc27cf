"""What run directories say. Nothing here imports torch."""
