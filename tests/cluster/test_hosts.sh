#!/usr/bin/env bash
# Training over four hosts, and what becomes of it when links and processes fail.
exec bash "$(dirname "$0")/run"
