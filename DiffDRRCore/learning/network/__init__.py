"""The network: what it answers, what it is made of, its losses, its file."""
