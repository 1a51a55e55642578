"""What one client takes on this machine, how many clients fit, and how long a run will take (``sim size``)."""
