"""What follows the folds: validation, selection, ensemble weights, postprocessing and calibration."""
