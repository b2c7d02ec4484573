"""What may be read: a checkpoint of any kind as tensors that read themselves when asked."""
