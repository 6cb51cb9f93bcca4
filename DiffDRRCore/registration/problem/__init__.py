"""What a registration is asked: options, bodies, free parameters and their bounds, renderers of the bodies."""
