"""Other people's trainers on top of ours: TRL and sentence-transformers, with nothing changed but the base class."""
