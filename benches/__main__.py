"""Run a bench by name, or list them: ``python -m benches [NAME [ARGUMENTS]]``."""

import runpy
import sys
from pathlib import Path


def main() -> None:
    files = [path for path in Path(__file__).parent.glob("*.py") if path != Path(__file__)]
    benches = sorted(path.stem for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8"))
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name not in benches:
        print("usage: python -m benches NAME [ARGUMENTS]; NAME is one of: " + ", ".join(benches))
        sys.exit(0 if name in (None, "-h", "--help") else 2)
    del sys.argv[0]
    runpy.run_module(f"benches.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
