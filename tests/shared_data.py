"""Where the real data are: LITKD_DATA, or beside the project."""

import os
from pathlib import Path

DATA = Path(os.environ.get("LITKD_DATA", Path(__file__).parents[2] / "shared" / "data"))
