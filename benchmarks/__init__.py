"""What the README's figures come from. Each script names its peer or limit, prints its ratio to it,
and says what it ran on.
"""
