"""Whether the larger worlds are explored, too: minutes and some GB instead of a minute."""

import os
from typing import Final

NIGHTLY: Final = os.environ.get("NIGHTLY") == "1"
