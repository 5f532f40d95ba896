"""New images through packed models: one image, a folder, several devices, several models, a submission."""
