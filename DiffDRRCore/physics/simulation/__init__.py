"""The simulator: what stands in the beam, what happens to the image, and sets of images."""
