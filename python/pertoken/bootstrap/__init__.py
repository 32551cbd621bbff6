"""A folder for PYTHONPATH, where no `.pth` file of an installed pertoken starts the profiling."""
