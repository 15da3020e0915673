from pathlib import Path

DATA = Path(__file__).parent
GOLDEN = DATA / "golden"
# files that a checkout may have beside it; a test that needs them skips where they are not
SHARED = DATA.parents[2] / "shared"
