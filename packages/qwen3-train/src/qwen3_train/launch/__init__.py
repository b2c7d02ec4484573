"""How a run is started, watched and started again."""
