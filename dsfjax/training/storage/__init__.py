"""What training leaves on the disk: whole files, checkpoints, run folders, the table of results."""
