"""`python -m weightpkg`."""

from weightpkg.cli import main

if __name__ == "__main__":
    main()
