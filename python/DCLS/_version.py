"""The version. CMake and the package's metadata read it from here."""

__version__ = "1.0.0"
