"""People's preferences: the rating store, the raters' page, ranking, pairs to ask for, blind comparison, the loop."""
