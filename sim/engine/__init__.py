"""What executes a round's clients: ``contract.py`` says what that is, the other files do it."""
