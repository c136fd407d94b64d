"""Models of the Hugging Face Hub: reading them, and what publishing one needs: faults in words,
the commit, licences, evaluation figures and the model card.

Nothing here imports huggingface_hub before it is used.
"""
