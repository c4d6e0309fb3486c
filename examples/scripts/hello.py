#!/usr/bin/env python3
"""Greets somebody: drover run hello.py --name World."""

import argparse
import os

parser = argparse.ArgumentParser()
parser.add_argument("--name", default="World")
args = parser.parse_args()
print(f"Hello, {args.name}, from job {os.environ['DROVER_JOB_ID']}", flush=True)
