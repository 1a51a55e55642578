"""The same clients over a network: who waits where, who may join, and how both ends begin and end."""
