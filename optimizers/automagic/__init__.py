"""Parts of the Automagic_CameAMP family: the rule, the mask of learning rates, and the context of a training run."""
