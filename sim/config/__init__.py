"""The fields of a configuration, how they are checked, and where they come from: Python, TOML files, flags."""
