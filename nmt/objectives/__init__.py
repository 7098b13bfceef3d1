"""What an update minimises: functions from (model, micro-batch, generator) to a summed loss and its weight."""
