"""Commands that read and report, and write no data."""
