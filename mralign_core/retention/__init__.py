"""What stays in a store: pins, roots, a plan of what goes, its removal, and a check of all that is there."""
