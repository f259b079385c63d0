"""From the files of a data set to question and answer texts, or to one named reason per row, in Python and PyArrow."""
