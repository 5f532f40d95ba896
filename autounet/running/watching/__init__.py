"""What tells how far a run is: progress, status, trackers, findings as lines."""
