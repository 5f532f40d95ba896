"""An example of a plug-in for AutoUNet: see docs/plugins.md."""
