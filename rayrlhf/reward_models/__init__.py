"""Reward models: a language model with a scalar head, trained on preferences; the reward `reward_model` uses one."""
