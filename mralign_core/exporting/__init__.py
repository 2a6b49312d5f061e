"""The data of a run as a data set for others, and back: kept traces with labels, weights and where they come from."""
