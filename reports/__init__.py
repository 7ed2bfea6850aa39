"""Records in; tables, plots and one HTML page out. Nothing here runs or measures anything."""
