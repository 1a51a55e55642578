"""How fast the device of each virtual client is, and when it is online: a function of (seed, client_id)."""
