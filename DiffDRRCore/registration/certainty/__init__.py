"""How sure a result is: covariance of what was found, and reasons to doubt it."""
