"""Models from and for other programs: nnU-Net's in, ONNX and DICOM-SEG out. Imported when asked for."""
