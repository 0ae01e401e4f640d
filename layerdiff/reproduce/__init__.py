"""Hand over the smallest runnable case of a divergence."""
