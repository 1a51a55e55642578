"""The round loop, the strategies by name, and what is made of the results of a round."""
