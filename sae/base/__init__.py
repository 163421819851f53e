"""What every part stands on: errors for people, atomic files, provenance, progress."""
