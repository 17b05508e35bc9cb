"""The study: configuration, run, verdict and command line of the fracture suite."""
