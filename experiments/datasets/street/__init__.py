"""Generated street scenes: what the data set ``scenes`` is drawn with."""
