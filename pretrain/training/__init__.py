"""The one loop and what it needs: checkpoints, schedules, optimizers, metrics, health."""
