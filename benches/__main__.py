"""Run a bench by name, or list them: ``python -m benches [NAME [ARGUMENTS]]``."""

import runpy
import sys
from pathlib import Path

HELPERS = {"__main__", "machine", "providers", "step_inputs", "step_providers"}


def main() -> None:
    folder = Path(__file__).parent
    benches = sorted(path.stem for path in folder.glob("*.py") if path.stem not in HELPERS)
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name not in benches:
        print("usage: python -m benches NAME [ARGUMENTS]; NAME is one of: " + ", ".join(benches))
        sys.exit(0 if name in (None, "-h", "--help") else 2)
    del sys.argv[0]
    runpy.run_module(f"benches.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
