"""Runs on a Slurm cluster: site settings, job scripts, submitting, what happens inside the job, and looking at it."""
