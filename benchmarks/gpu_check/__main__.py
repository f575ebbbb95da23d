"""Names what is not installed, in one line, before anything else is imported."""

import sys

from benchmarks.gpu_check.packages import missing

NOT_POSSIBLE = 2

if __name__ == "__main__":
    if names := missing():
        print(
            f"error: gpu-check cannot start: not installed: {', '.join(names)}. Install them, or "
            "give a folder with their wheels: make gpu-check WHEELS=FOLDER",
            file=sys.stderr,
        )
        sys.exit(NOT_POSSIBLE)
    from benchmarks.gpu_check.cli import main

    main()
