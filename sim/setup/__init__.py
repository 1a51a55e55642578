"""From a configuration to a run that can begin: prepared, checked, resumed, with its folder open."""
