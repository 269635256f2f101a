"""A whole data set into a results folder, on this machine, on several GPUs or on Dask."""
