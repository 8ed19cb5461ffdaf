"""firstlight: the foundations of neural-network training, as parts that work.

A map, one line a room; a room imports only from floors below it.

F1, torch only:
    ``firstlight.losses``        prediction and target to a scalar
    ``firstlight.regularizers``  parameters or activations to a penalty term; bounds on weights
    ``firstlight.layers``        dropout of every kind, noise
    ``firstlight.mixing``        MixUp and CutMix
    ``firstlight.sampling``      samplers that resume and shard
    ``firstlight.initializers``  tensors filled in place; ``InitPlan``
    ``firstlight.optimizers``    LAMB, ``param_groups``; torch's optimizers under the same roof
    ``firstlight.schedules``     optimizer step to a factor of the base rate
F2:
    ``firstlight.measures``      batches, gradients and curves to plain numbers
    ``firstlight.checks``        evidence to findings, each check with a code
F3, with Lightning:
    ``firstlight.modules``       LightningModules: ``ObjectiveModule``, and a final one per kind of task
    ``firstlight.preflight``     can this set-up learn? asked of copies, before training
    ``firstlight.recovery``      verified checkpoints, stops after the step, exact resumes; bad steps left out
    ``firstlight.tracking``      a W&B logger that cannot stop a run; readers of what was written
F4:
    ``firstlight.callbacks``     one file a callback
F5:
    ``firstlight.cli``           ``FirstlightCLI``, and the ``firstlight`` command

Importing this package imports nothing else: take what you need from its room.
"""

__version__ = "0.1.0"
