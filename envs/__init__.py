"""Environments, one file each; the file's name is the environment's name. Importing this registers Gymnasium's ids."""

import gymnasium

gymnasium.register("rayrlhf/SingleTurn-v0", entry_point="rayrlhf.envs.single_turn:SingleTurn")
