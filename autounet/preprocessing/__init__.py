"""Cases as read to cases as trained on, and predicted scores back to the file's own voxels. Works on arrays only."""

from autounet.preprocessing.export import export
from autounet.preprocessing.prepare import Prepared, case_key, prepare_case

__all__ = ["Prepared", "case_key", "export", "prepare_case"]
