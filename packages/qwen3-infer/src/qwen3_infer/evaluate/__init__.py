"""Measuring a model: log-probabilities of texts, and the tasks of lm_eval."""
