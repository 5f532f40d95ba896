"""From a promised time to the work that fits: costs, measured and modelled, and the deadline."""
