"""Tests of what makes the module an extension: CMake files, catalogue entry, icons, installation, sample data."""
