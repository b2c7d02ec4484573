"""What a run says of itself: lines, metrics, event files, curves."""
