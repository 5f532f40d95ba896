"""Repairing a data set into a new folder."""
