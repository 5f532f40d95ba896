"""What a MONAI bundle brings along in its folder `scripts`, to predict with monai, torch, numpy and SimpleITK alone.

`export_monai` copies these files there, and those of autounet that they import: a dot less at each import makes them
one package. Nothing in autounet imports this one.
"""
