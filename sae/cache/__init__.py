"""The activation cache: a zarr v3 group that plain `zarr.open_group` reads."""
