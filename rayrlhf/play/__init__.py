"""`rayrlhf play`: a person, a policy, or both at a text game; its parts, a file each."""
