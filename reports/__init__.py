"""Records in; tables, plots and one HTML page out. Nothing here runs or measures anything.

A table of one's own is a function of the records, which a YAML file names (see plugins.py), made of the parts here.
"""

from optimeter.reports.table import Cell, Table, number, percent

__all__ = ["Cell", "Table", "number", "percent"]
