"""Where candidates begin: starts of the views, and motions around them."""
