"""From files to batches: record files, image sets, views, label maps, the loader."""
