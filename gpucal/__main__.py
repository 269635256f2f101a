"""The command line, as ``python -m gpucal``."""

from gpucal.cli.main import console

if __name__ == "__main__":
    console()
