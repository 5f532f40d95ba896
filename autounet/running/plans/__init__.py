"""How a plan is made for a run: timed on the device, shaped to a time, started from a model, tried, kept as a file."""
