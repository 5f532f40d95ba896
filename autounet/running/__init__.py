"""What the pipeline is made of: jobs and who runs them, the clock, recipes, shaping to a promised time, status."""
