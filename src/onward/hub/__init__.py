"""The Hub: pushing whole checkpoints in the background, and resuming from what was pushed.

    init_hf_repo          repo.open_repo          one short process: create, check the right to write
    _push_from_checkpoint contents → uploader     pin the checkpoint, queue it, a thread hands it to worker processes
    _finish_current_push  uploader.finish         wait with a bar and a limit, then report what was pushed
    push_to_hub           contents → uploader     the same queue, waited for
    create_model_card     card                    text only
    resume                download.fetch          one process: list, download, return the folder

Every request to the network is made by ``worker.py`` in a process of its own: see docs/decisions for why. Nothing here
imports huggingface_hub into the training process.
"""
