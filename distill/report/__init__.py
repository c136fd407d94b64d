"""`distill report`: a page about a run, or about several side by side.

command      the command line
write        the two files, in their folder
records      what the folder of a run records
predictions  what students and teacher say about each evaluation image
content      all that a report says, from the modules below
facts        what a run is, what it cost, what computed it
results      the final table
curves       what is drawn
classes      confusion, gains, agreement
thumbnails   images on which student and teacher differ
comparison   what differs between recipes
studies      the tables of studies, and their runs
words        figures as text
render       content as HTML and Markdown, by the templates
drawing      curves and bars as SVG
picture      the curves as one PNG
"""
