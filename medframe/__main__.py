"""`python -m medframe`, the same as `medframe`."""

from medframe.cli import main

if __name__ == "__main__":
    main()
