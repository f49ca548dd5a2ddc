"""The command line: `onward demo`, `onward checkpoints …`."""
