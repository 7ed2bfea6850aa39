"""Records in; tables, plots and one HTML page out. Nothing here runs or measures anything.

A table of one's own is a function of the records, which a YAML file names (see plugins.py), made of the parts here.
"""

import sys
from importlib import import_module

from optimeter.reports.table import Cell, Table, number, percent

__all__ = ["Cell", "Table", "number", "percent"]

if __name__ == "reports":  # `python -m reports` in a checkout: the package is the same by either name
    sys.modules[__name__] = import_module("optimeter.reports")
