"""The configuration: its settings, how they are checked, and how they are read from Python, TOML files and flags."""
