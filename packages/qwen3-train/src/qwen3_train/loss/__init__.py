"""The training loss, forward and backward."""
