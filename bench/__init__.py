"""The benchmark: one command, every subject in the same run, ratios instead of absolute promises.

Each workload runs on all subjects in turn before the next round starts (interleaving), so noise of the machine falls
on everyone alike; what counts is the median over rounds and its ratio to native and to the best peer of the same run.
A figure that a workload failed to produce is shown as failed with its reason and never guessed.

Run it from the project's root: ``.venv/bin/python -m bench`` (``--quick`` for a short one, ``--help`` for the rest).
"""
