"""One run of one output folder: its stages, their order, and what is done already."""
