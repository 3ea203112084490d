"""`python -m src.main ...` from the root of a plain checkout: puts `src` on the path and hands over to the package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from draftloop.__main__ import main

if __name__ == "__main__":
    main()
