"""Where the model runs: in this process, or shared out over others."""
