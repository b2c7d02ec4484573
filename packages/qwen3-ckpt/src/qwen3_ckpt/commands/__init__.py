"""What the command line of each command reads."""
