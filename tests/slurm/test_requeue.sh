#!/usr/bin/env bash
# The job scripts of launch/slurm on a real Slurm.
exec bash "$(dirname "$0")/run"
