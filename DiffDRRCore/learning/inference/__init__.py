"""The pose of an X-ray by a trained network."""
