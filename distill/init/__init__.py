"""distill init: looks at a folder of images and a teacher, and writes a recipe that trains well on
them.
"""
