"""Commands that write data: what a run is, its resumption, and what it says of its origin."""
