"""One training script, two libraries, equal to the bit.

    scenarios/   what a user could write, as functions of a `Stage` that names no library
    worker.py    one process per library; runs each scenario in a fork of itself and writes what happened as JSON
    compare.py   the differences between two such records, in words
    test_*.py    one test per scenario

To look at a single scenario while debugging, from the repository root:

    python -m tests.parity.diff accumulation_with_remainder
"""
