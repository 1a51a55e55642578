"""How arrays are encoded on their way between server and clients, and how many bytes that takes; numpy only."""
