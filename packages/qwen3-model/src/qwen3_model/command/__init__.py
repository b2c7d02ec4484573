"""What every command does alike: errors in one sentence, options, files written whole, progress."""
