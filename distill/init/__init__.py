"""distill init: examines a folder of images and a teacher, and writes a recipe for them."""
