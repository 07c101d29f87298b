"""``python -m workbench`` is the same program as ``wb``."""

from workbench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
