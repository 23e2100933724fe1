def check(loaded): pass
