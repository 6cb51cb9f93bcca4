"""The torch backend: readable, on any device and in any floating type; what the fused backends are held to."""
