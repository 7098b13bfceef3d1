"""What the stage `train` is made of: plan of an epoch, update, schedule, validation, record, checkpoints, the loop."""
