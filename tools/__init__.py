"What makes the package, README, stored outputs and site from the notebooks."
