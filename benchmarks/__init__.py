"""What training costs with transformers, with a hand-written loop, with onward, and with Lightning.

    python -m benchmarks.run [--device cpu|cuda] [--rows overhead,imports] [--quick]

`rows/` holds one module per question. Every figure comes from peers measured in turns within one run, so that a busy
machine is busy for all of them, and only after their losses were found equal.
"""
