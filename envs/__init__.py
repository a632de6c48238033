"""Environments, one file each; the file's name is the environment's name. Importing this registers Gymnasium's ids.

`gymnasium.make("rayrlhf.envs:rayrlhf/TextWorld-v0")` imports this; no environment is imported before it is made.
"""

import gymnasium

gymnasium.register("rayrlhf/SingleTurn-v0", entry_point="rayrlhf.envs.single_turn:SingleTurn")
gymnasium.register("rayrlhf/TextWorld-v0", entry_point="rayrlhf.envs.textworld:TextWorld")
