"""The processes of a job: who computes which part, how they exchange, how they are started."""
