"""Reports: the pages of studies, trajectories and validations, with their tables and figures."""
