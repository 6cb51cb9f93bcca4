"""What a training shows: CTs as subjects, the views that are drawn of them, and what a CT is known by."""
