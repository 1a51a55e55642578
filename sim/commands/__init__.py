"""The functions behind the commands of ``sim``."""
