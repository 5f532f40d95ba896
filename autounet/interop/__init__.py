"""Models from and for other programs: nnU-Net's in, networks for ONNX and torch out. Imported only when used."""
