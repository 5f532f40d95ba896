"""What follows the folds: selection, weights, postprocessing, calibration, further metrics, comparison."""
