"""Is this answer equal to that label?"""
