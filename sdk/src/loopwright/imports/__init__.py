"""Import of feedback from files: one reader per format, and the importer, which sends their rows in bulk.

A reader turns a binary stream into a `Row` or a `RowError` for each row of the file. Its memory does not grow with the
file, and nothing that a row holds makes it raise.
"""
