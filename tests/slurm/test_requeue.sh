#!/usr/bin/env bash
# The job scripts of launch/slurm on a real Slurm.
# cores: 1
exec bash "$(dirname "$0")/run"
