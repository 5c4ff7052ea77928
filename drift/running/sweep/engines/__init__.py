"""Ways to carry out groups: in processes of this machine, and as tasks of Dask."""
