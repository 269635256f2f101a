"""The version, for all rooms: what imports it need not import the package's top."""

__all__ = ["__version__"]

__version__ = "0.2.0"
