"""AutoUNet configures itself: segmentation models planned, trained and cross-validated from a folder of images."""

__version__ = "0.1.0"
