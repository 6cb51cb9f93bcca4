"""How well a state explains the images: views, what is known besides, levels; value, slope and curvature."""
