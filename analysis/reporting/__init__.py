"""The report: benchmark and theory of certified runs side by side, from the files of the runs alone."""
