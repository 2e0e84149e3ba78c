"""``python -m pathup`` is ``pathup``."""

from pathup.cli.main import main

if __name__ == "__main__":
    main()
